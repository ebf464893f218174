"""PURE. The role → permission table, each with a sentence that screens and docs show.

Owns what a role may do; never looks at a request, a user row or the clock. Roles add up: a
person holds any number of them. Deciding and configuring are kept apart on purpose: an admin
who should also review needs the reviewer role as well, and the ledger shows who gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Permission(StrEnum):
    """One thing a person may do; the value is stable and appears in problems and docs."""

    READ_REQUESTS = "requests.read"
    REVIEW_REQUESTS = "requests.review"
    CLOSE_ALARMS = "alarms.close"
    BEGIN_PAUSES = "pauses.begin"
    END_PAUSES = "pauses.end"
    BREAK_GLASS = "requests.break_glass"
    END_GRANTS = "grants.end"
    DELEGATE = "delegations.write"
    READ_EXCHANGES = "exchanges.read"
    READ_SERVERS = "servers.read"
    WRITE_SERVERS = "servers.write"
    WRITE_CREDENTIALS = "credentials.write"
    READ_APPS = "apps.read"
    WRITE_APPS = "apps.write"
    READ_POLICIES = "policies.read"
    WRITE_POLICIES = "policies.write"
    READ_USERS = "users.read"
    WRITE_USERS = "users.write"
    OWN_TOKENS = "tokens.own"
    READ_AUDIT = "audit.read"
    EXPORT_AUDIT = "audit.export"


SENTENCES: Mapping[Permission, str] = MappingProxyType(
    {
        Permission.READ_REQUESTS: "See approval requests with the exact arguments of each call.",
        Permission.REVIEW_REQUESTS: "Approve or deny approval requests.",
        Permission.CLOSE_ALARMS: "Close alarms that one has not caused, with a note.",
        Permission.BEGIN_PAUSES: "Stop releasing calls: all of them, an app's or a server's.",
        Permission.END_PAUSES: "End a pause, so that calls are released again.",
        Permission.BREAK_GLASS: "Approve one request alone in an emergency.",
        Permission.END_GRANTS: "End remembered approvals.",
        Permission.DELEGATE: "Say who stands in for oneself, from when to when.",
        Permission.READ_EXCHANGES: "See what each app asked, round by round, and what came of it.",
        Permission.READ_SERVERS: "See registered servers and their tool definitions.",
        Permission.WRITE_SERVERS: "Register, change, test and remove servers; accept definitions.",
        Permission.WRITE_CREDENTIALS: "Set a server's credential; nobody can read one back.",
        Permission.READ_APPS: "See apps and when their keys were made.",
        Permission.WRITE_APPS: "Register and change apps, make and revoke their keys.",
        Permission.READ_POLICIES: "See policy versions and the rules in force.",
        Permission.WRITE_POLICIES: "Save and activate policy versions.",
        Permission.READ_USERS: "See users, their roles and reviewer groups.",
        Permission.WRITE_USERS: "Invite, change and disable users.",
        Permission.OWN_TOKENS: "Make and revoke one's own personal access tokens.",
        Permission.READ_AUDIT: "Search the ledger and fetch records, proofs and checkpoints.",
        Permission.EXPORT_AUDIT: "Download the evidence folder; each download is recorded.",
    }
)


@dataclass(frozen=True)
class Role:
    """A named set of permissions and the sentence that explains it."""

    name: str
    sentence: str
    permissions: frozenset[Permission]


_VIEWER = frozenset(
    {
        Permission.READ_REQUESTS,
        Permission.READ_EXCHANGES,
        Permission.READ_SERVERS,
        Permission.READ_APPS,
        Permission.READ_POLICIES,
        Permission.OWN_TOKENS,
    }
)

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "viewer": Role(
            "viewer", "Looks at what is asked and configured; changes nothing.", _VIEWER
        ),
        "reviewer": Role(
            "reviewer",
            "Decides approval requests, and sees what a viewer sees.",
            _VIEWER
            | {
                Permission.REVIEW_REQUESTS,
                Permission.CLOSE_ALARMS,
                Permission.BEGIN_PAUSES,
                Permission.END_GRANTS,
                Permission.DELEGATE,
            },
        ),
        "break_glass": Role(
            "break_glass",
            "May approve one request alone in an emergency, which raises an alarm.",
            _VIEWER | {Permission.BREAK_GLASS},
        ),
        "auditor": Role(
            "auditor",
            "Reads and exports the ledger, sees users and their roles; decides nothing.",
            _VIEWER | {Permission.READ_AUDIT, Permission.EXPORT_AUDIT, Permission.READ_USERS},
        ),
        "admin": Role(
            "admin",
            "Configures servers, apps, policies and users; needs the reviewer role to decide.",
            frozenset(Permission) - {Permission.REVIEW_REQUESTS, Permission.BREAK_GLASS},
        ),
    }
)


def allowed(roles: Iterable[str], permission: Permission) -> bool:
    """Whether any of `roles` grants `permission`; an unknown role grants nothing."""
    return any(role in ROLES and permission in ROLES[role].permissions for role in roles)
