"""A few seconds of what `make fuzz` does for as long as it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import Tally, fuzz_bodies, fuzz_rounds, fuzz_streams, fuzz_wire, smaller

SECONDS = 1.5


def nothing_found(tally: Tally, *expected: str) -> None:
    assert not tally.failures, f"{tally}\n" + "\n".join(map(str, tally.failures.items()))
    assert set(expected) <= set(tally.outcomes), "the inputs are too good, or not good enough"


def test_B_19_no_changed_body_carries_anything_to_azure_unseen() -> None:
    nothing_found(fuzz_bodies(SECONDS), "accepted", "invalid_json", "tool_type_unknown")


def test_B_17_no_damaged_stream_is_read_in_two_ways() -> None:
    nothing_found(fuzz_streams(SECONDS), "frames", "none")


def test_B_17_no_order_of_frames_shows_the_app_what_is_hidden() -> None:
    nothing_found(fuzz_rounds(SECONDS), "done", "failed")


@pytest.mark.e2e
async def test_H_02_no_damaged_request_is_left_without_an_end(tmp_path: Path) -> None:
    nothing_found(await fuzz_wire(3, tmp_path), "200", "400")


def test_a_failing_input_is_made_smaller() -> None:
    def check(raw: bytes) -> None:
        assert not (b"x" in raw and b"y" in raw)

    assert smaller(b"aaaxbbbbbbbbybb", check) == b"xy"
