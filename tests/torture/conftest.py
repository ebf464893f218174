"""One zygote for all the tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torture.mortals import Zygote, zygote


@pytest.fixture(scope="session")
def ancestor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """What every gateway of these tests is forked from."""
    with zygote(tmp_path_factory.mktemp("zygote") / "log") as made:
        yield made
