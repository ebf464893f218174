"""The scripted model's grammar, without any network."""

from __future__ import annotations

import pytest

from gateway.demo.model import Call, Round, read
from gateway.demo.turns import next_turn


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('call transfer {"amount": 1e2}', [[("transfer", '{"amount": 1e2}')]]),
        (
            'please call bank.transfer {"a":{"b":"} then "}}',
            [[("bank.transfer", '{"a":{"b":"} then "}}')]],
        ),
        ('call a {"x":1} and call b {}', [[("a", '{"x":1}'), ("b", "{}")]]),
        (
            "call a {}\nthen call b {}\nthen call c {}",
            [[("a", "{}")], [("b", "{}")], [("c", "{}")]],
        ),
        ("Then we talked about a call.", []),
        ("What is the balance of account 4711?", [[("get_balance", '{"account":"4711"}')]]),
        ("List the transfers of account 0815", [[("list_transfers", '{"account":"0815"}')]]),
        (
            "Change the phone number of Ada Lovelace to +44 20 1.",
            [[("update_contact", '{"name":"Ada Lovelace","phone":"+44 20 1"}')]],
        ),
        (
            "Please transfer 12.50 usd to account 2001",
            [[("transfer", '{"amount":12.5,"currency":"USD","to_account":"2001"}')]],
        ),
        (
            "Draw the bill, then use the computer to transfer 5 EUR to account 0815",
            [
                [
                    ("image_generation", "{}"),
                    ("transfer", '{"amount":5,"currency":"EUR","to_account":"0815"}'),
                ],
                [("computer", "{}")],
            ],
        ),
        ("Generate a tiny picture of a cat", [[("image_generation", "{}")]]),
        ("Withdraw the money and redraw the line", []),
        ('use the computer {"type":"wait"} now', [[("computer", '{"type":"wait"}')]]),
        ("Show the contact details of Carl Gauss.", [[("find_contact", '{"name":"Carl Gauss"}')]]),
    ],
)
def test_calls(text: str, calls: list[list[tuple[str, str]]]) -> None:
    found = [[(c.tool, c.arguments) for c in r.calls] for r in read(text).rounds]
    assert [r for r in found if r] == calls


def test_arguments_keep_their_bytes() -> None:
    text = '{ "b" : 1.0, "a":1,\t"a":2, "ü":"\\u00fc" }'
    assert read(f"call t {text} please").rounds[0].calls[0].arguments == text


def test_say_function_and_denial() -> None:
    script = read('say "one moment" first function f {"q":1} and call t {} if denied call u {}')
    assert script.rounds == (
        Round("one moment", (Call("f", '{"q":1}', "function"), Call("t", "{}"))),
    )
    assert script.if_denied == (Round(None, (Call("u", "{}"),)),)


def test_directives() -> None:
    script = read("Hi fail: rate-limit 3 times on resume quirk: relist fail: slow 1.5s")
    limit, slow = script.faults
    assert (limit.name, limit.times, limit.on_resume) == ("rate-limit", 3, True)
    assert (slow.name, slow.seconds, slow.times, slow.on_resume) == ("slow", 1.5, None, False)
    assert script.has_quirk("relist", resume=False)
    assert script.text == "Hi"


def test_progress_is_read_from_the_items() -> None:
    script = read("call a {} then call b {}")
    request = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "a"}
    yes = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    done = {
        "type": "mcp_call",
        "approval_request_id": "mcpr_1",
        "server_label": "s",
        "name": "a",
        "output": "ok",
    }
    assert next_turn(script, []).calls[0].tool == "a"
    assert next_turn(script, [request, yes, done]).calls[0].tool == "b"
    no = {**yes, "approve": False, "reason": "No."}
    turn = next_turn(script, [request, no])
    assert turn.calls == ()
    assert turn.say == "I did not run s.a: the call was denied. The reason given: No."
