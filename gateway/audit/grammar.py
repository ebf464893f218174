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


@dataclass
class Story:
    """What the ledger has told of one approval request so far."""

    index: int
    subject: Mapping[str, str]
    asked_by: frozenset[str]
    args: str | None
    size: int | None
    digest: object
    quorum: int
    reviews: dict[str, str] = field(default_factory=dict)
    decision: tuple[str, str] | None = None
    released: dict[object, str] = field(default_factory=dict)  # fence → outcome, "" while open
    differs: int | None = None  # the record that shows another execution than approved
    alarmed: bool = False


class Grammar:
    """Feed records in order; every fault names the record that breaks a rule."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = {}
        self._ids: set[bytes] = set()
        self._epoch = 0
        self._allowed: dict[str, set[tuple[str, str, str]]] = {}
        self._sent: dict[tuple[str, str], str] = {}
        self._rules = {
            "ledger.started": self._started,
            "call.ruled": self._ruled,
            "approval.requested": self._requested,
            "approval.reviewed": self._reviewed,
            "approval.decided": self._decided,
            "release.sending": self._released,
            "execution.observed": self._executed,
            "execution.mismatch": self._mismatch,
        }

    def feed(self, index: int, record: Mapping[str, Any]) -> Iterator[Fault]:
        """The faults that this record shows; its form has been checked before."""
        identity = bytes.fromhex(record["id"].replace("-", ""))
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
        if record["effect"] == "allow":
            subject = record["subject"]
            call = (subject["server"], subject["tool"], _call(record))
            self._allowed.setdefault(subject["exchange"], set()).add(call)
        yield from ()

    def _requested(self, index: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name = record["subject"]["approval"]
        if name in self.stories:
            yield "duplicate request", f"{name} was requested before"
            return
        asked_by = {record["actor"]["ref"], record.get("requester")}
        self.stories[name] = Story(
            index,
            record["subject"],
            frozenset(ref for ref in asked_by if ref and ref != "gateway"),
            record["args"]["commit"],
            record["args"].get("bytes"),
            record.get("digest"),
            record.get("quorum", 1),
        )

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
        if by == "reviewers" and record["actor"]["ref"] in story.asked_by:
            yield "decision by requester", f"{name} was decided by who had asked for it"
        if value == "approve":
            yield from _approvable(name, story, by)
        elif by == "reviewers" and "deny" not in story.reviews.values():
            yield "denial without review", f"no reviewer denied {name}"
        yield from _same(story, record)
        story.decision = value, by

    def _released(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if record.get("approve") is False:
            return
        subject, fence = record["subject"], record["fence"]
        names = list(record.get("approvals", ()))
        if "approval" in subject and subject["approval"] not in names:
            names.append(subject["approval"])
        for name in names:
            yield from self._release(name, self.stories.get(name), fence)
        if len(names) == 1 and names[0] in self.stories:
            yield from _same(self.stories[names[0]], record)
        if not names and not self._is_allowed(record):
            yield "release without decision", "no rule allowed the call and nobody approved it"
        self._sent[subject["exchange"], _call(record)] = ""

    def _release(self, name: str, story: Story | None, fence: object) -> Iterator[tuple[str, str]]:
        if story is None or story.decision is None:
            yield "release without decision", f"{name} was released before it was decided"
        elif story.decision[0] != "approve":
            yield "release without decision", f"{name} was released although it was denied"
        if story is not None:
            if any(outcome != "not_sent" for outcome in story.released.values()):
                yield "released twice", f"{name} was released before"
            story.released[fence] = ""

    def _executed(self, index: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if "approval" not in record["subject"]:
            yield from self._executed_by_rule(record)
            return
        name, story = self._story(record)
        if story is None:
            yield "execution without request", f"{name} was never requested"
            return
        yield from _outcome(name, story, record)
        if record.get("match") is not False:
            yield from _same(story, {**record, "args": {}})
        differs = record.get("args", {}).get("commit", story.args) != story.args
        if differs and record.get("match") is True:
            yield "arguments differ", f"what was executed for {name} is not what was approved"
        elif differs or record.get("match") is False:
            story.differs = index

    def _executed_by_rule(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        key = record["subject"]["exchange"], _call(record)
        before = self._sent.get(key, self._sent.get((key[0], "")))
        if before is None and record["outcome"] != "not_sent":
            yield "execution without release", "no release of this call was recorded"
        elif before and key[1] and not record.get("reconciled"):
            yield "two outcomes", "the outcome of this call was recorded before"
        if key in self._sent:
            self._sent[key] = record["outcome"]

    def _mismatch(self, _: int, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        story = self.stories.get(record["subject"].get("approval", ""))
        if story is not None:
            story.alarmed = True
        yield from ()

    def _is_allowed(self, record: Mapping[str, Any]) -> bool:
        subject, call = record["subject"], _call(record)
        return any(
            subject.get("server", server) == server
            and subject.get("tool", tool) == tool
            and (not call or not known or call == known)
            for server, tool, known in self._allowed.get(subject["exchange"], ())
        )

    def _story(self, record: Mapping[str, Any]) -> tuple[str, Story | None]:
        name = record["subject"]["approval"]
        return name, self.stories.get(name)


def _call(record: Mapping[str, Any]) -> str:
    return str(record.get("call") or record["subject"].get("call", ""))


def _approvable(name: str, story: Story, by: str) -> Iterator[tuple[str, str]]:
    verdicts = list(story.reviews.values())
    if by in {"expiry", "cancelled"}:
        yield "approval by nobody", f"{name} was approved by {by}"
    elif by == "reviewers" and "deny" in verdicts:
        yield "approval against a denial", f"{name} was approved although a reviewer denied it"
    elif by == "reviewers" and verdicts.count("approve") < story.quorum:
        given = verdicts.count("approve")
        yield "below quorum", f"{name} has {given} approving reviews of {story.quorum} needed"


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


def _same(story: Story, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _SUBJECT:
        if record["subject"].get(name, story.subject.get(name)) != story.subject.get(name):
            yield "another call", f"its {name} is not that of the request"
    if story.digest is not None and record.get("digest", story.digest) != story.digest:
        yield "another call", "its digest is not that of the request"
    if record.get("args", {}).get("commit", story.args) != story.args:
        yield "arguments differ", "its arguments are not those of the request"
