"""The kinds of record about what people do beside a plain review: grants, standing in, emergencies.

Pure.
"""

from __future__ import annotations

from gateway.audit.kind import APPROVAL, ARGS, HASH, Kind, example, words

REVIEWING = {
    "review.withdrawn": Kind(
        "A reviewer took back a review while the request was still pending.",
        "{actor} took back a review of {tool} on {server}.",
        ("approval",),
        ("review",),
        ("channel", "verdict"),
        example(APPROVAL, review="rev_01", channel="web"),
    ),
    "approval.escalated": Kind(
        "Nobody had decided by a set time, so more groups may decide.",
        "{tool} on {server} was escalated to {groups}.",
        ("approval",),
        ("groups",),
        (),
        example(APPROVAL, groups=["managers"]),
    ),
    "break_glass.used": Kind(
        "Somebody approved one request alone, despite its quorum and groups: an emergency.",
        "{actor} broke the glass for {tool} on {server}.",
        ("approval",),
        ("review",),
        ("digest", "channel", "quorum", "alarm", "expires"),
        example(APPROVAL, review="rev_01", digest=HASH, quorum=2, alarm="alm_01"),
    ),
    "alarm.overdue": Kind(
        "An alarm was not closed by the time it had to be.",
        "An alarm about {app} is overdue.",
        ("app",),
        ("alarm",),
        ("what", "deadline"),
        example(APPROVAL, alarm="alm_01", what=["break_glass"]),
    ),
}

GRANTS = {
    "grant.created": Kind(
        "An approval is remembered: calls like it are answered with it, within these bounds.",
        "{actor} remembers the approval of {tool} on {server}.",
        ("approval", "app", "server", "tool"),
        ("grant", "terms", "expires", "scope"),
        words("pattern args digest max_uses tooldef rule url"),
        example(
            {"approval": "apr_01", "app": "app_01", "server": "crm", "tool": "send_email"},
            grant="grt_01",
            terms=HASH,
            scope="app",
            pattern="exact",
            expires="2026-01-05T17:00:00.000000Z",
            max_uses=20,
            args=ARGS,
        ),
    ),
    "grant.ended": Kind(
        "A remembered approval answers nothing any more.",
        "The remembered approval of {tool} on {server} ended: {code}.",
        ("app", "server", "tool"),
        ("grant", "code"),
        ("uses",),
        example(
            {"app": "app_01", "server": "crm", "tool": "send_email"},
            grant="grt_01",
            code="revoked",
            uses=4,
        ),
    ),
}

STANDING_IN = {
    "delegation.created": Kind(
        "Somebody stands in for a reviewer from one time to another, with the groups of the other.",
        "{actor} lets {user} stand in for {instead_of}.",
        ("user", "instead_of"),
        ("delegation", "expires"),
        ("begins",),
        example(
            {"user": "usr_02", "instead_of": "usr_01"},
            delegation="dlg_01",
            begins="2026-01-05T09:00:00.000000Z",
            expires="2026-01-12T09:00:00.000000Z",
        ),
    ),
    "delegation.ended": Kind(
        "Somebody stands in for a reviewer no longer.",
        "{actor} ended that {user} stands in for {instead_of}.",
        ("user", "instead_of"),
        ("delegation",),
        (),
        example({"user": "usr_02", "instead_of": "usr_01"}, delegation="dlg_01"),
    ),
}
