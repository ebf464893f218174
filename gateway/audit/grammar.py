"""The grammar of the ledger: which records may follow which.

Owns the question whether what the records tell could happen under the rules: asked, reviewed,
decided, released, executed, in this order and by the right people. Hashes do not answer that.
Pure; feed it every record in order, then `finish`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    decision: tuple[str, str] | None = None
    released: dict[object, str] = field(default_factory=dict)  # fence → outcome, "" while open
    superseded: bool = False
    differs: int | None = None  # the record that shows another execution than approved
    alarmed: bool = False


class Grammar:
    """Feed records in order; every fault names the record that breaks a rule."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = {}
        self._ids: set[int] = set()
        self._epoch = 0
        self._pauses: dict[str, tuple[str, str | None]] = {}  # in force: scope and name
        self._ruled_before: dict[str, tuple[Ruling, tuple[object, ...]]] = {}
        self._rules = {
            "ledger.started": self._started,
            "call.ruled": self._ruled,
            "approval.requested": self._requested,
            "approval.reviewed": self._reviewed,
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
        yield from _same(story, record)
        story.reviews[who] = record["verdict"]

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
                yield from _by_reviewers(name, story, value, record["actor"]["ref"])
            case "policy":
                yield from _by_policy(name, story, value, record.get("policy"))
            case "grant":
                yield "decision by grant", f"{name} was decided by a grant, which there is not yet"
            case _ if value == "approve":
                yield "approval by nobody", f"{name} was approved by {by}"
        yield from _same(story, record)
        story.decision = value, by
        story.reviews = {}  # a later one is a fault anyway

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
    elif verdicts.count("approve") < story.quorum:
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
