"""A request told in sentences: what it would do, what became of it, who may not decide and why.

Chooses words, never facts. Says "executed" or "sent" only where that was observed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request

from gateway.approvals import lifecycle
from gateway.approvals.case import Reviewer
from gateway.approvals.views import ApprovalView, DecisionView, ReviewView, SettlementView
from gateway.errors import GatepassError, Refused
from gateway.identity.login import Principal
from gateway.identity.roles import Permission, allowed
from gateway.policy.risk import RiskSignal
from gateway.registry.directory import ServerView
from web import arguments, frame, visible, words
from web.formats import seen
from web.rendering import Interface, Renderer
from web.translation import N_


@dataclass(frozen=True)
class DecidedRow:
    """One line of the history."""

    view: ApprovalView
    summary: str
    deciders: Markup


@dataclass(frozen=True)
class Outcome:
    """How a settled request stands."""

    tone: str
    icon: str
    title: str
    next: Markup


@dataclass(frozen=True)
class Again:
    """A fresh sign-in is needed; `link` leads to it where an identity provider can give one."""

    link: str | None


@dataclass(frozen=True)
class Step:
    """One event of the timeline."""

    icon: str
    tone: str
    text: Markup
    at: datetime | None = None
    reason: str | None = None
    note: str | None = None


_ICONS = {"good": "approved", "bad": "denied", "alarm": "warning", "waiting": "pending",
          "unknown": "unknown", "over": "expired"}  # fmt: skip
_REVIEWED = {
    "approve": N_("%(who)s approved"),
    "deny": N_("%(who)s denied"),
}
_SETTLED = {
    "executed": N_("%(who)s found out that it was executed"),
    "not_executed": N_("%(who)s found out that it was not executed"),
}
_EMERGENCY = N_("%(who)s broke the glass and approved alone")
_EXECUTED = {
    True: N_("Executed. The arguments match what was approved."),
    False: N_("Executed. The arguments do NOT match what was approved."),
    None: N_("Executed. The arguments could not be compared."),
}


class Teller:
    """Tells in the language and zone of one reader."""

    def __init__(self, renderer: Renderer, ui: Interface) -> None:
        self._renderer = renderer
        self._ui = ui

    def say(self, sentence: str, **members: object) -> Markup:
        """`sentence` translated, its members escaped."""
        translated = Markup(self._renderer.translate(self._ui.language, sentence))  # noqa: S704
        return translated % members if members else translated

    def effect(self, view: ApprovalView) -> str:
        """What the server itself says that the tool does, unless a risk signal says so."""
        if any(signal["code"] in words.EFFECT_SIGNALS for signal in view.risk_signals):
            return ""
        return self.say(words.EFFECTS[words.effect_of(view.definition)])

    def signals(
        self, view: ApprovalView, shown: arguments.ArgumentView
    ) -> list[tuple[Markup, str]]:
        """What is unusual: a sentence each and, where there is one, what it was seen in."""
        named = {hazard.code for hazard in shown.hazards}
        told = [
            (self._signal(signal), "")
            for signal in view.risk_signals
            if words.COVERED.get(signal["code"]) not in named
        ]
        return told + self.hazards(shown)

    def hazards(self, shown: arguments.ArgumentView) -> list[tuple[Markup, str]]:
        """What a reader of this text could be misled by."""
        return [(self.say(words.HAZARDS[item.code]), item.seen) for item in shown.hazards]

    def signs(self, found: Sequence[RiskSignal]) -> list[tuple[Markup, str]]:
        """What stands out in a stranger's text."""
        told = ({"code": sign.code, "sentence": sign.sentence} for sign in found)
        return [(self._signal(signal), "") for signal in told]

    def _signal(self, signal: Mapping[str, Any]) -> Markup:
        known = words.SIGNALS.get(signal["code"])
        if known is None or self.say(known) == known:
            return Markup.escape(visible.visible(signal["sentence"]))
        return self.say(known)

    def objection(
        self, view: ApprovalView, reader: Principal, lent: Sequence[lifecycle.Person] = ()
    ) -> str | None:
        """Why this reader may not decide the request, or None. `lent`: whom they stand in for."""
        if not allowed(reader.roles, Permission.REVIEW_REQUESTS):
            return self.say(N_("Deciding needs the reviewer role; an admin can give it."))
        address = reader.email.casefold()
        for review in view.reviews:
            if review.reviewer.casefold() == address:
                return self.say(N_("You have reviewed this; it waits for another reviewer."))
        standing = lifecycle.Standing(
            view.quorum.needed,
            frozenset(view.groups),
            view.require_reason,
            view.owner,
            view.end_user,
        )
        mine = lifecycle.Person(reader.email, reader.groups)
        if isinstance(lifecycle.capacity(standing, mine, lent), lifecycle.Capacity):
            return None
        why = lifecycle.barrier(standing, reader.email, reader.groups)
        return self._barrier(standing, why, address, reader.groups) if why is not None else None

    def _barrier(
        self, standing: lifecycle.Standing, why: str, address: str, groups: frozenset[str]
    ) -> str:
        mine = lifecycle.Person(address, groups)
        own = lifecycle.conflict(standing, mine) is not None
        if own and not (standing.end_user and standing.end_user.casefold() == address):
            return self.say(N_("You own the app that asks; somebody else has to decide."))
        if standing.end_user is not None and standing.end_user.casefold() == address:
            return self.say(N_("You are named as the end user; somebody else has to decide."))
        if standing.groups:
            names = ", ".join(sorted(standing.groups))
            return self.say(N_("Only members of %(groups)s may decide."), groups=seen(names))
        return why

    def credential(self, server: ServerView | None) -> Markup:
        """What proves to the server who calls, by name; nobody here can see the value."""
        if server is None:
            return self.say(N_("the server is not registered any more"))
        if server.credential is None:
            return self.say(N_("none"))
        header, reference = server.credential.header, str(server.credential.ref)
        return self.say(
            N_("header %(header)s, value from %(reference)s"),
            header=seen(header),
            reference=seen(reference),
        )

    def outcome(self, view: ApprovalView) -> Outcome | None:
        """How it ended and what happened next; None while it waits."""
        if view.state == lifecycle.PENDING:
            return None
        reached = _reached(view)
        tone, title, sentence = words.OUTCOMES[reached]
        told = self.say(sentence)
        observed = view.execution == "executed" and view.settlement is None
        if observed and view.executed_at and view.decision:
            span = self._ui.reader.duration(view.executed_at - view.decision.at)
            told = self.say(N_("Executed %(span)s after the decision."), span=span) + " " + told
        return Outcome(tone, _ICONS[tone], self.say(title), told)

    def timeline(self, view: ApprovalView) -> list[Step]:
        """Everything that is known to have happened, oldest first."""
        return list(self._steps(view))

    def _steps(self, view: ApprovalView) -> Iterator[Step]:
        asked = self.say(N_("%(app)s asked, and the call was held"), app=seen(view.app))
        yield Step("pending", "waiting", asked, view.created_at)
        for review in view.reviews:
            tone = "good" if review.verdict == "approve" else "bad"
            text = self.say(_reviewed(review), who=seen(review.reviewer))
            if review.on_behalf_of:
                for_whom = seen(review.on_behalf_of)
                text += " " + self.say(N_("(standing in for %(whom)s)"), whom=for_whom)
            if not review.counts:
                text += " " + self.say(N_("(does not count: may not sign in any more)"))
            told = {"reason": review.reason, "note": review.note}
            yield Step(_ICONS[tone], tone, text, review.at, **told)
        if view.escalation is not None and view.escalation.since is not None:
            groups = seen(", ".join(view.escalation.to))
            text = self.say(N_("Nobody had decided, so %(groups)s may decide too"), groups=groups)
            yield Step("warning", "waiting", text, view.escalation.since)
        if view.decision is not None:
            yield self._decided(view.state, view.decision)
        yield from self._after(view)

    def _after(self, view: ApprovalView) -> Iterator[Step]:
        """What became of an approved call."""
        if view.superseded_by is not None:
            tone, title, _ = words.OUTCOMES["superseded"]
            yield Step(_ICONS[tone], tone, self.say(title))
        elif view.given_up:
            tone, title, _ = words.OUTCOMES["given up"]
            yield Step(_ICONS[tone], tone, self.say(title))
        elif view.settlement is not None:
            tone, title, _ = words.OUTCOMES["approved unknown"]
            yield Step(_ICONS[tone], tone, self.say(title), view.executed_at)
            yield self._settled(view.settlement)
        elif view.execution == "executed":
            tone = "alarm" if view.arguments_match is False else "good"
            text = self.say(_EXECUTED[view.arguments_match])
            yield Step(_ICONS[tone], tone, text, view.executed_at)
        elif view.execution in ("failed", "unknown", "sending"):
            tone, title, _ = words.OUTCOMES[f"approved {view.execution}"]
            yield Step(_ICONS[tone], tone, self.say(title), view.executed_at)

    def _settled(self, settlement: SettlementView) -> Step:
        text = self.say(_SETTLED[settlement.outcome], who=seen(settlement.by))
        return Step("approved", "waiting", text, settlement.at, note=settlement.reason)

    def _decided(self, state: str, decision: DecisionView) -> Step:
        by = self.say(words.DECIDERS.get(decision.by, decision.by))
        text = self.say(N_("%(state)s by %(by)s"), state=self.say(words.STATES[state]), by=by)
        tone = {"approved": "good", "denied": "bad"}.get(state, "over")
        return Step(state, tone, text, decision.at)

    def decided_row(self, view: ApprovalView) -> DecidedRow:
        """A line of the history, with who or what decided."""
        return DecidedRow(view, arguments.summary(view.arguments), self._deciders(view))

    def _deciders(self, view: ApprovalView) -> Markup:
        by = view.decision.by if view.decision else ""
        if by == "reviewers":
            return Markup(", ").join(seen(name) for name in _names(view.reviews))
        return self.say(words.DECIDERS.get(by, by))

    def refusal(self, problem: GatepassError | None) -> str | None:
        """Why something was not done, in the reader's language where its code says enough."""
        if problem is None:
            return None
        known = words.REFUSALS.get(problem.code) or words.CONFLICTS.get(problem.code)
        return self.say(known) if known else str(seen(problem.message))

    def problem(self, problem: Refused | None) -> str | None:
        """Why a form was not taken."""
        if problem is None:
            return None
        if problem.param == "reason":
            return self.say(N_("A reason is needed. Say in a sentence why."))
        return str(seen(problem.message))


def _reached(view: ApprovalView) -> str:
    if view.superseded_by is not None:
        return "superseded"
    if view.given_up:
        return "given up"
    if view.settlement is not None:
        return f"settled {view.settlement.outcome}"
    return words.outcome_of(view.state, view.execution, view.arguments_match)


def again(request: Request, view: ApprovalView) -> Again | None:
    """That who looks has to sign in again before deciding, where the rule asks for it."""
    services = frame.web(request).services
    reader: Principal = request.state.principal
    at = reader.authenticated_at
    fresh = at is not None and frame.now(request) - services.settings.step_up <= at
    if not view.step_up or fresh:
        return None
    back = urlencode({"again": "true", "next": f"/requests/{view.id}"})
    elsewhere = services.sign_in is not None and reader.auth == "oidc"
    return Again(f"/sign-in/provider?{back}" if elsewhere else None)


def reviewer_of(reader: Principal) -> Reviewer:
    """Who is looking, as somebody who decides over the pages."""
    return Reviewer(
        reader.user_id,
        reader.email,
        reader.roles,
        reader.groups,
        channel="web",
        auth=reader.auth,
        authenticated_at=reader.authenticated_at,
    )


def definition(view: ApprovalView) -> arguments.ArgumentView:
    """The tool definition, laid out like arguments are."""
    return arguments.view(exact(view.definition or {}))


def exact(definition: Mapping[str, Any]) -> str:
    """The text that the digest of a definition covers."""
    return json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _reviewed(review: ReviewView) -> str:
    return _EMERGENCY if review.emergency else _REVIEWED[review.verdict]


def _names(reviews: tuple[ReviewView, ...]) -> list[str]:
    return list(dict.fromkeys(review.reviewer for review in reviews))
