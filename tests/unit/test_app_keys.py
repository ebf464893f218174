"""App keys: found by id, proven by the digest of the whole string."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from gateway.registry.directory import AppView, View
from gateway.registry.keys import digest, new_key, public_id


def view(*keys: tuple[str, AppView]) -> View:
    found = {public_id(text) or "": (digest(text), app) for text, app in keys}
    return View(apps_by_key_id=MappingProxyType(found))


def test_form() -> None:
    key = new_key()
    assert key.text.startswith(f"gp_app_{key.id}_")
    assert len(key.text) == 59
    assert public_id(key.text) == key.id
    assert key.text not in repr(key)


def test_keys_are_their_owners() -> None:
    ann, bo = AppView("app_1", "ann"), AppView("app_2", "bo")
    first, second = new_key(), new_key()
    both = view((first.text, ann), (second.text, bo))
    assert both.authenticate(first.text) is ann
    assert both.authenticate(second.text) is bo


def test_B_02_a_common_beginning_is_not_an_identity() -> None:
    ann = AppView("app_1", "ann")
    key = new_key().text
    known = view((key, ann))
    for length in (8, 15, 20, 40, 58):
        forged = key[:length] + "".join("A" if c != "A" else "B" for c in key[length:])
        assert forged != key
        assert known.authenticate(forged) is None


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "gp_app_",
        "gp_pat_abcd1234_" + "x" * 43,
        "gp_app_abcd1234_" + "x" * 42,
        "gp_app_abcd1234_" + "x" * 44,
        "gp_app_ABCD1234_" + "x" * 43,
        "gp_app_abcd1234_" + "x" * 42 + "\n",
        "gp_app_٣bcd1234_" + "x" * 43,
        "' OR 1=1 --",
        "\ud800",
        "\0",
    ],
)
def test_what_is_no_key_is_nobodys(wrong: str) -> None:
    assert public_id(wrong) is None
    assert view((new_key().text, AppView("app_1", "ann"))).authenticate(wrong) is None


def test_every_attempt_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id costs one comparison, like a wrong secret."""
    from gateway.registry import directory

    seen: list[int] = []
    real = directory.hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        seen.append(len(b))
        return real(a, b)

    monkeypatch.setattr(directory.hmac, "compare_digest", counting)
    key = new_key().text
    known = view((key, AppView("app_1", "ann")))
    known.authenticate(key)
    known.authenticate(new_key().text)
    known.authenticate("x")
    assert seen == [32, 32, 32]


def test_a_digest_of_zeros_is_nobodys() -> None:
    empty = View()
    assert empty.authenticate(new_key().text) is None
