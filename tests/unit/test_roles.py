"""The role table: what each role may do, exactly, and that every row explains itself."""

from __future__ import annotations

import pytest

from gateway.identity.roles import ROLES, SENTENCES, Permission, allowed

VIEWER = {
    "requests.read",
    "exchanges.read",
    "servers.read",
    "apps.read",
    "policies.read",
    "tokens.own",
}
MATRIX = {
    "viewer": VIEWER,
    "reviewer": VIEWER
    | {"requests.review", "alarms.close", "pauses.begin", "grants.end", "delegations.write"},
    "break_glass": VIEWER | {"requests.break_glass"},
    "auditor": VIEWER | {"audit.read", "audit.export", "users.read"},
    "admin": {p.value for p in Permission} - {"requests.review", "requests.break_glass"},
}


@pytest.mark.parametrize("role", MATRIX)
@pytest.mark.parametrize("permission", list(Permission))
def test_matrix(role: str, permission: Permission) -> None:
    assert allowed([role], permission) is (permission.value in MATRIX[role])


def test_roles_add_up() -> None:
    assert allowed(["admin", "reviewer"], Permission.REVIEW_REQUESTS)
    assert allowed(["reviewer", "auditor"], Permission.READ_AUDIT)


@pytest.mark.parametrize("roles", [[], ["owner"], ["Admin"], ["admin "]])
def test_nothing_else_grants_anything(roles: list[str]) -> None:
    assert not any(allowed(roles, permission) for permission in Permission)


def test_every_role_and_permission_has_a_sentence() -> None:
    assert set(SENTENCES) == set(Permission)
    assert set(ROLES) == set(MATRIX)
    for sentence in [*SENTENCES.values(), *(role.sentence for role in ROLES.values())]:
        assert sentence.endswith(".")
        assert sentence[0].isupper()


def test_the_tables_cannot_be_changed_at_run_time() -> None:
    with pytest.raises(TypeError):
        ROLES["viewer"] = ROLES["admin"]  # type: ignore[index]
