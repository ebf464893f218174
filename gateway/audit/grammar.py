"""The grammar of the ledger: which records may follow which.

Owns the question whether what the records tell could happen under the rules: asked, reviewed,
decided, released, executed, in this order and by the right people. Hashes do not answer that.
Pure; feed it every record in order, then `finish`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

Fault: TypeAlias = tuple[int, str, str]  # index of the record, class of damage, sentence
_SUBJECT = ("exchange", "server", "tool")
_NOBODY = frozenset({"gateway", "", None})
_NONE: frozenset[str] = frozenset()
_RULINGS = {"approve": ("allow",), "deny": ("deny", "hold")}


@dataclass(slots=True)
class Ruling:
    """What policy said about the call, and which policy."""

    effect: str
    policy: object


@dataclass(slots=True)
class Story:
    """What the ledger has told of one approval request so far. `about`: see `_about`."""

    index: int
    about: tuple[object, ...]
    asked_by: frozenset[str]
    quorum: int
    ruling: Ruling | None
    reviews: dict[str, str] = field(default_factory=dict)
    instead_of: dict[str, str] = field(default_factory=dict)  # reviewer → for whom
    emergencies: set[str] = field(default_factory=set)  # who broke the glass
    decision: tuple[str, str] | None = None
    released: dict[object, str] = field(default_factory=dict)  # fence → outcome, "" while open
    superseded: bool = False
    differs: int | None = None  # the record that shows another execution than approved
    alarmed: bool = False


@dataclass(slots=True)
class Granted:
    """A remembered approval. `about`: app, server and tool."""

    about: tuple[object, ...]
    expires: str
    max_uses: int | None
    uses: int = 0
    ended: bool = False


class Grammar:
    """Feed records in order; every fault names the record that breaks a rule."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = {}
        self._ids: set[int] = set()
        self._epoch = 0
        self._pauses: dict[str, tuple[str, str | None]] = {}  # in force: scope and name
        self._ruled_before: dict[str, tuple[Ruling, tuple[object, ...]]] = {}
        self._disabled: set[str] = set()
        self._grants: dict[str, Granted] = {}
        self._leave: set[tuple[object, ...]] = set()
        self._rules = {
            "ledger.started": self._started,
            "call.preallowed": self._preallowed,
            "call.ruled": self._ruled,
            "approval.requested": self._requested,
            "approval.reviewed": self._reviewed,
            "review.withdrawn": self._withdrawn,
            "break_glass.used": self._broken,
            "user.changed": self._person,
            "grant.created": self._granted,
            "grant.ended": self._ended,
            "approval.decided": self._decided,
            "approval.superseded": self._superseded,
            "release.sending": self._released,
            "execution.observed": self._executed,
            "execution.mismatch": self._mismatch,
            "pause.begun": self._paused,
            "pause.ended": self._resumed,
        }

    def feed(self, index: int, record: Mapping[str, Any]) -> Iterator[Fault]:
        """The faults that this record shows; its form has been checked before."""
        identity = int(record["id"].replace("-", ""), 16)
        if identity in self._ids:
            yield index, "duplicate id", "its id stands in the ledger already"
        self._ids.add(identity)
        rule = self._rules.get(record["type"])
        if rule is not None:
            for damage, sentence in rule(index, record):
                yield index, damage, sentence

    def finish(self) -> Iterator[Fault]:
        """The faults that only show at the end."""
        for name, story in self.stories.items():
            if story.differs is not None and not story.alarmed:
                sentence = f"what was executed for {name} is not what was approved, without alarm"
                yield story.differs, "unreported difference", sentence

    def _started(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if record["epoch"] <= self._epoch:
            yield "epoch went back", f"election {record['epoch']} follows election {self._epoch}"
        self._epoch = record["epoch"]

    def _preallowed(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        exchange, server = (record["subject"].get(name) for name in ("exchange", "server"))
        self._leave.update((exchange, server, tool, record["policy"]) for tool in record["tools"])
        yield from ()

    def _has_leave(self, story: Story, record: Mapping[str, Any]) -> bool:
        """Whether policy allowed the call, and Azure had been told that it need not ask."""
        if story.ruling is None or story.ruling.effect != "allow" or story.released:
            return False
        names = (record["subject"].get(name) for name in _SUBJECT)
        allowed = (*names, story.ruling.policy) in self._leave
        return allowed and story.decision == ("approve", "policy")

    def _ruled(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        ruling = Ruling(record["effect"], record.get("policy"))
        if name in self._ruled_before or (story is not None and story.ruling is not None):
            yield "two rulings", f"policy had ruled on {name} before"
        elif story is None:
            self._ruled_before[name] = ruling, _about(record)
        else:
            yield "ruling after request", f"{name} was put before people before policy had ruled"

    def _requested(self, index: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name = record["subject"]["approval"]
        if name in self.stories:
            yield "duplicate request", f"{name} was requested before"
            return
        asked_by = {record["actor"]["ref"], record.get("requester")} - _NOBODY
        ruling, about = self._ruled_before.pop(name, (None, None))
        self.stories[name] = story = Story(
            index,
            _about(record),
            frozenset(asked_by) if asked_by else _NONE,
            record.get("quorum", 1),
            ruling,
        )
        if about is not None:
            yield from _differences(story, about)

    def _reviewed(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        if story is None:
            yield "review without request", f"{name} was never requested"
            return
        who = record["actor"]["ref"]
        if story.decision is not None:
            yield "review after decision", f"{name} was decided before"
        if who in story.asked_by:
            yield "review by requester", f"{who} reviewed what {who} had asked for"
        if who in story.reviews:
            yield "two reviews", f"{who} reviewed {name} twice"
        other = record.get("instead_of")
        through = set(story.instead_of.values())
        if heard := ({who} & through) | ({other} & (through | set(story.reviews))):
            yield "one voice twice", f"{heard.pop()} was heard twice about {name}"
        yield from _same(story, record)
        story.reviews[who] = record["verdict"]
        if other is not None:
            story.instead_of[who] = other

    def _withdrawn(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        who = record["actor"]["ref"]
        if story is None or who not in story.reviews:
            yield "withdrawal without review", f"{who} took back a review of {name}, but gave none"
            return
        if story.decision is not None:
            yield "withdrawal after decision", f"{name} was decided before"
        del story.reviews[who]
        story.instead_of.pop(who, None)

    def _broken(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        who = record["actor"]["ref"]
        if story is None or story.reviews.get(who) != "approve" or story.decision is not None:
            yield "emergency without review", f"{who} broke the glass for {name} at no such time"
        if story is not None:
            yield from _same(story, record)
            story.emergencies.add(who)

    def _person(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        change = self._disabled.add if record.get("disabled") else self._disabled.discard
        change(record["subject"]["user"])
        yield from ()

    def _granted(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        grant, (name, story) = record["grant"], self._story(record)
        if grant in self._grants:
            yield "two grants", f"{grant} was made before"
        if story is None or story.decision != ("approve", "reviewers") or story.emergencies:
            yield "grant without approval", f"no quorum of reviewers had approved {name}"
        elif story.about[1:4] != (*_about(record)[1:3], record.get("digest")):
            yield "another call", f"{grant} is of another call than {name}"
        self._grants[grant] = Granted(_whose(record), record["expires"], record.get("max_uses"))

    def _ended(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        grant = self._grants.get(record["grant"])
        if grant is None or grant.ended:
            yield "end of no grant", f"{record['grant']} was no grant, or had ended"
        else:
            grant.ended = True

    def _decided(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        if story is None:
            yield "decision without request", f"{name} was never requested"
            return
        value, by = record["decision"]["value"], record["decision"]["by"]
        if story.decision is not None:
            yield "two decisions", f"{name} was decided before"
        match by:
            case "reviewers":
                yield from _by_reviewers(name, self._counted(story), value, record["actor"]["ref"])
            case "policy":
                yield from _by_policy(name, story, value, record.get("policy"))
            case "grant":
                yield from self._by_grant(name, story, value, record)
            case _ if value == "approve":
                yield "approval by nobody", f"{name} was approved by {by}"
        yield from _same(story, record)
        story.decision = value, by
        story.reviews = {}  # a later one is a fault anyway

    def _counted(self, story: Story) -> Story:
        """The story without the approvals of who may not sign in any more."""
        reviews = {
            who: verdict
            for who, verdict in story.reviews.items()
            if verdict == "deny" or who not in self._disabled
        }
        return replace(story, reviews=reviews)

    def _by_grant(
        self, name: str, story: Story, value: str, record: Mapping[str, Any]
    ) -> Iterator[tuple[str, str]]:
        grant = self._grants.get(record.get("grant", ""))
        if grant is None or value != "approve":
            yield "decision without grant", f"{name} was decided by no grant there is"
            return
        if story.ruling is None or story.ruling.effect != "hold":
            yield "grant against policy", f"a grant answered {name}, which policy did not hold"
        if grant.ended or record["ts"] >= grant.expires:
            yield "grant was over", f"{name} was decided by a grant that had ended"
        if grant.about != _whose(record):
            yield "grant of another call", f"{name} was decided by a grant for something else"
        grant.uses += 1
        limit = grant.uses if grant.max_uses is None else grant.max_uses
        if record.get("use") != grant.uses or grant.uses > limit:
            yield "grant used too often", f"{name} is not the use of its grant that it says"

    def _released(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if record.get("approve") is False:
            return
        name, story = self._story(record)
        if any(_covers(*pause, record["subject"]) for pause in self._pauses.values()):
            yield "released while paused", f"{name} was released although a pause was in force"
        if story is None or story.decision is None:
            yield "release without decision", f"{name} was released before it was decided"
        elif story.decision[0] != "approve":
            yield "release without decision", f"{name} was released although it was denied"
        if story is not None:
            yield from _released_once(name, story)
            yield from _same(story, record)
            story.released[record["fence"]] = ""

    def _paused(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        scope = record["covers"]
        self._pauses[record["pause"]] = scope, record["subject"].get(scope)
        yield from ()

    def _resumed(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self._pauses.pop(record["pause"], None) is None:
            yield "pause without beginning", f"the pause {record['pause']} was not in force"

    def _superseded(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        if story is None:
            yield "superseded without approval", f"{name} was never requested"
            return
        if story.superseded or story.decision is None or story.decision[0] != "approve":
            yield "superseded without approval", f"{name} had no approval that stood"
        if any(outcome != "not_sent" for outcome in story.released.values()):
            yield "superseded after release", f"{name} was released before"
        yield from _same(story, record)
        story.superseded = True

    def _executed(self, index: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, story = self._story(record)
        if story is None:
            yield "execution without request", f"{name} was never requested"
            return
        if self._has_leave(story, record):
            story.released[None] = ""
        yield from _outcome(name, story, record)
        if record.get("match") is not False:
            yield from _same(story, {**record, "args": {}})
        approved = story.about[-1]
        differs = record.get("args", {}).get("commit", approved) != approved
        if differs and record.get("match") is True:
            yield "arguments differ", f"what was executed for {name} is not what was approved"
        elif differs or record.get("match") is False:
            story.differs = index

    def _mismatch(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        story = self.stories.get(record["subject"].get("approval", ""))
        if story is not None:
            story.alarmed = True
        yield from ()

    def _story(self, record: Mapping[str, Any]) -> tuple[str, Story | None]:
        name = record["subject"]["approval"]
        return name, self.stories.get(name)


def _by_reviewers(name: str, story: Story, value: str, who: str) -> Iterator[tuple[str, str]]:
    verdicts = list(story.reviews.values())
    if who in story.asked_by:
        yield "decision by requester", f"{name} was decided by who had asked for it"
    if value == "deny":
        if "deny" not in verdicts:
            yield "denial without review", f"no reviewer denied {name}"
        return
    if story.ruling is not None and story.ruling.effect == "deny":
        yield "approval against policy", f"{name} was approved although policy denied it"
    if "deny" in verdicts:
        yield "approval against a denial", f"{name} was approved although a reviewer denied it"
    elif verdicts.count("approve") < story.quorum and who not in story.emergencies:
        given = verdicts.count("approve")
        yield "below quorum", f"{name} has {given} approving reviews of {story.quorum} needed"


def _by_policy(name: str, story: Story, value: str, policy: object) -> Iterator[tuple[str, str]]:
    ruling = story.ruling
    if ruling is None or ruling.effect not in _RULINGS[value]:
        yield "decision without ruling", f"no ruling of policy settled {name} like this"
    elif policy is not None and policy != ruling.policy:
        yield "another policy", f"{name} was decided under another policy than it was ruled by"


def _outcome(name: str, story: Story, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    outcome = record["outcome"]
    fence = record.get("fence", next(reversed(story.released), None))
    before = story.released.get(fence)
    if before is None:
        if outcome != "not_sent":
            yield "execution without release", f"{name} was not released under fence {fence}"
    elif before and not record.get("reconciled"):
        yield "two outcomes", f"the outcome of {name} under fence {fence} was recorded before"
    story.released[fence] = outcome


def _released_once(name: str, story: Story) -> Iterator[tuple[str, str]]:
    if any(outcome != "not_sent" for outcome in story.released.values()):
        yield "released twice", f"{name} was released before"
    if story.superseded:
        yield "released after superseded", f"{name} was superseded before"


def _covers(scope: str, name: str | None, subject: Mapping[str, Any]) -> bool:
    """Whether a pause covers what is about this subject."""
    return scope == "all" or (name is not None and subject.get(scope) == name)


def _about(record: Mapping[str, Any]) -> tuple[object, ...]:
    """Which call a record is about: exchange, server, tool, digest, commitment to the arguments."""
    subject = record["subject"]
    names = [subject.get(name) for name in _SUBJECT]
    return (*names, record.get("digest"), record.get("args", {}).get("commit"))


def _whose(record: Mapping[str, Any]) -> tuple[object, ...]:
    """What a grant is bound to: app, server, tool."""
    return tuple(record["subject"].get(name) for name in ("app", "server", "tool"))


def _same(story: Story, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _differences(story, _about(record))


def _differences(story: Story, about: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    for name, here, there in zip((*_SUBJECT, "digest", ""), about, story.about, strict=True):
        if here is None or here == there:
            continue
        if name:
            yield "another call", f"its {name} is not that of the request"
        else:
            yield "arguments differ", "its arguments are not those of the request"
