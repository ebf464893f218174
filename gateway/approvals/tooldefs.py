"""What stands between a call and the definition of its tool, and is for people to look at.

A call is made by what its model was shown, answered by what its server is now, and allowed by what
was pinned: unless all three are one definition, no rule and no remembered approval lets it pass.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.approvals.kept import Kept
from gateway.policy.characters import skeleton
from gateway.policy.risk import RiskSignal
from gateway.registry.tools import NO_PIN
from gateway.store.tables import ToolDefinition

GONE = "tool_gone"
REFUSAL = "This tool of the server was refused by a person, so no call of it is made."
_SENTENCES = {
    "tool_unlisted": "The server has never listed this tool.",
    GONE: "The newest list of the server does not hold this tool, or cannot be relied on.",
    "tool_new": "The server did not list this tool before, and nobody has accepted it.",
    "definition_changed": "The server has changed the definition of this tool since it was pinned.",
    "other_definition_shown": "The model was shown another definition of this tool than the one "
    "that is pinned.",
}
_LOOKALIKE = "Another registered server has a name that is easily taken for this one's."
#: Codes of what no rule and no remembered approval passes over.
UNSETTLED = frozenset(_SENTENCES)


def unsettled(
    definition: ToolDefinition | None, shown: Collection[str] = ()
) -> tuple[RiskSignal, ...]:
    """What of a tool waits for a person. `shown` are digests of what the model has seen of it."""
    if definition is None:
        return (_signal("tool_unlisted"),)
    codes = []
    if definition.gone_at is not None:
        codes.append(GONE)
    if definition.pinned_digest == NO_PIN:
        codes.append("tool_new")
    elif definition.pinned_digest != definition.listed_digest:
        codes.append("definition_changed")
    told = {definition.pinned_digest, definition.listed_digest}
    if set(shown) - told:
        codes.append("other_definition_shown")
    return tuple(map(_signal, codes))


def lookalikes(label: str, labels: Collection[str]) -> tuple[RiskSignal, ...]:
    """Says so where another server's name is easily read as this one's."""
    mine = skeleton(label)
    if any(other != label and skeleton(other) == mine for other in labels):
        return (RiskSignal("lookalike_server", _LOOKALIKE),)
    return ()


def shown_to(kept: Kept, server_id: str, tool: str) -> Collection[str]:
    """The digests of what the model of an exchange was shown of a tool, as far as it is known."""
    return kept.shown.get(server_id, {}).get(tool, ())


def signs(definition: ToolDefinition | None) -> tuple[RiskSignal, ...]:
    """What stands out in the texts of a tool."""
    found = (definition.signs if definition else None) or ()
    return tuple(RiskSignal(sign["code"], sign["sentence"]) for sign in found)


def refused(definition: ToolDefinition | None) -> bool:
    """Whether a person has said no to the tool: nobody can approve a call of it."""
    return definition is not None and definition.refused_at is not None


def _signal(code: str) -> RiskSignal:
    return RiskSignal(code, _SENTENCES[code])
