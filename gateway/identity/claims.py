"""PURE. Who an identity provider says somebody is, in our words: address, roles, reviewer groups.

Only values that the operator has mapped count, compared exactly. Where a claim does not say what
is needed, that is a refusal with a code, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import NotAllowed, Refused
from gateway.identity.roles import ROLES

_LONGEST_NAME = 100
_MOST_VALUES = 5000


class SignInRefused(NotAllowed):
    """A sign-in through the provider that is refused; the code says why, nothing else does."""

    def __init__(self, code: str, message: str, *, user_id: str | None = None) -> None:
        super().__init__(message, code=code, status=403)
        self.user_id = user_id


@dataclass(frozen=True)
class Rules:
    """Which claims speak of roles and groups, and what each of their values gives."""

    roles_claim: str
    groups_claim: str
    roles: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Raises `Refused` for a role that there is not."""
        unknown = sorted({role for given in self.roles.values() for role in given} - set(ROLES))
        if unknown:
            raise Refused(
                f"GATEPASS_OIDC_ROLES gives the role {unknown[0]!r}: choose among "
                f"{', '.join(ROLES)}.",
                code="configuration_invalid",
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The claims without which nothing can be said, or not everything."""
        return ("email", self.roles_claim, *((self.groups_claim,) if self.groups else ()))


@dataclass(frozen=True)
class Identity:
    """Somebody as the provider describes them. `roles` may be empty: then they have none here."""

    issuer: str
    subject: str
    email: str
    name: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...]


def identity(claims: Mapping[str, Any], rules: Rules) -> Identity:
    """Read claims that have been checked to be the provider's. Raises `SignInRefused`."""
    return Identity(
        issuer=str(claims["iss"]),
        subject=_subject(claims.get("sub")),
        email=_email(claims),
        name=_name(claims.get("name")),
        roles=_roles(_mapped(claims, rules.roles_claim, rules.roles)),
        groups=tuple(sorted(set(_mapped(claims, rules.groups_claim, rules.groups)))),
    )


def lacks(claims: Mapping[str, Any], rules: Rules) -> bool:
    """Whether something is missing that the provider may say elsewhere."""
    return any(
        found(claims, name) is None and not _elsewhere(claims, name) for name in rules.wanted
    )


def found(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that name, else the member that a dotted name leads to, else None."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _subject(value: object) -> str:
    # OpenID Connect Core §2: at most 255 ASCII characters, compared exactly.
    if isinstance(value, str) and 0 < len(value) <= 255 and value.isascii() and value.isprintable():
        return value
    raise SignInRefused("subject_invalid", "The identity provider does not say who this is.")


def _email(claims: Mapping[str, Any]) -> str:
    value = claims.get("email")
    email = value.strip().casefold() if isinstance(value, str) else ""
    if not _is_address(email):
        raise SignInRefused("no_email", "The identity provider sent no e-mail address.")
    if claims.get("email_verified", True) not in (True, "true"):
        raise SignInRefused(
            "email_unverified", "The identity provider has not verified this e-mail address."
        )
    return email


def _is_address(email: str) -> bool:
    local, _, domain = email.partition("@")
    plain = email.isprintable() and not any(c.isspace() or c in "@<>,;" for c in local + domain)
    return bool(local and domain and plain and len(email) <= 254)


def _name(value: object) -> str | None:
    name = value.strip()[:_LONGEST_NAME] if isinstance(value, str) else ""
    return name if name and name.isprintable() else None


def _mapped(
    claims: Mapping[str, Any], name: str, given: Mapping[str, tuple[str, ...]]
) -> list[str]:
    if given and _elsewhere(claims, name):
        raise SignInRefused(
            "groups_overage", "There are more groups than the identity provider puts into a token."
        )
    return [target for value in _texts(found(claims, name)) for target in given.get(value, ())]


def _elsewhere(claims: Mapping[str, Any], name: str) -> bool:
    """Whether Entra ID says that the values are too many to be told here."""
    names = claims.get("_claim_names")
    return (isinstance(names, Mapping) and name in names) or (
        name == "groups" and claims.get("hasgroups") in (True, "true")
    )


def _texts(value: object) -> Iterable[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values[:_MOST_VALUES] if isinstance(text, str)]


def _roles(given: Iterable[str]) -> tuple[str, ...]:
    wanted = set(given)
    return tuple(role for role in ROLES if role in wanted)
