"""Check an evidence folder of Gatepass without Gatepass.

    python verify_evidence.py FOLDER [--key VKEY] [--pin NOTE_FILE] [--receipt PROOF_FILE]

Needs Python 3.11 and the `cryptography` package, and nothing else: this one file is written
apart from the product that made the folder, so that two programs have to agree. It prints what
it found and ends with 0 (sound), or with the code of the lowest layer that is not:

    11 signatures and keys    12 tree, tiles, entries    13 older heads and receipts
    15 order of events        16 opened payloads         17 manifest and files
    18 not known to this version
"""
# One file that a stranger reads from top to bottom: its checks stand in one piece each.
# ruff: noqa: C901, PLR0912, PLR0915, SIM905

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NOTES, TREE, HISTORY, ORDER, PAYLOADS, FILES, UNKNOWN = 11, 12, 13, 15, 16, 17, 18
WIDTH, LARGEST, MOST = 256, 256 << 20, 100
KINDS = frozenset(
    """
    alarm.closed alarm.overdue alarm.raised approval.escalated break_glass.used
    delegation.created delegation.ended grant.created grant.ended review.withdrawn
    app.changed app.created app.removed app_key.created app_key.revoked approval.decided
    approval.requested approval.reviewed approval.superseded call.preallowed call.ruled
    call.shadowed config.applied credential.bound credential.unbound credential.written
    exchange.finished exchange.opened
    execution.evidence execution.mismatch execution.observed export.made group.changed
    ledger.heartbeat ledger.started link.created oauth_client.changed oauth_client.registered
    oauth_client.removed pause.begun pause.ended payload.read
    policy.activated policy.saved policy.shadow_begun policy.shadow_ended
    release.sending request.completed security.overridden security.refused server.changed
    server.forgotten server.probed server.registered server.removed sign_in.refused token.created
    token.revoked tooldef.accepted tooldef.changed tooldef.gone tooldef.list_refused tooldef.new
    tooldef.pinned tooldef.refused tooldef.restored user.changed user.created user.signed_in
    user.signed_out
    """.split()
)
SHAPE = {"id": str, "type": str, "ts": str, "actor": dict, "subject": dict}
FILE_NAMES = re.compile(
    r"(?:checkpoint|manifest\.json|VERIFY\.md|verify_evidence\.py|checkpoints/\d{1,19}\.note"
    r"|proofs/\d{1,19}\.tlog-proof|keys/[0-9a-f]{8}\.vkey|payloads/[a-z0-9_]{1,80}\.json)"
)
# RFC 8785 for the values that are allowed here.
WRITER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
Keys: TypeAlias = dict[tuple[str, bytes], bytes]


class Bad(ValueError):
    """Something that cannot be what it should be."""


class Head(NamedTuple):
    """A signed head."""

    origin: str
    size: int
    root: bytes


class Facts(NamedTuple):
    """Which call a record is about; `mark` is the commitment to its arguments."""

    exchange: str | None
    server: str | None
    tool: str | None
    digest: str | None
    mark: str | None


def sha(*parts: bytes) -> bytes:
    """SHA-256 of the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text: str, length: int = 0) -> bytes:
    """Base64 in its one canonical form, and of that many bytes."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeError):
        raise Bad("not base64") from None
    if base64.b64encode(raw).decode() != text or (length and len(raw) != length):
        raise Bad("base64 with altered padding or of another length")
    return raw


def decimal(text: str) -> int:
    """A plain decimal below 2^62."""
    if re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) is None or int(text) > 1 << 62:
        raise Bad("not a plain decimal number")
    return int(text)


def utf8(raw: bytes) -> str:
    """Text without control characters but line ends."""
    text = raw.decode()
    if re.search(r"[\x00-\x09\x0b-\x1f]", text):
        raise Bad("a control character")
    return text


def read_key(raw: bytes) -> tuple[tuple[str, bytes], bytes]:
    """A verifier key line as ((name, id), public key)."""
    found = re.fullmatch(r"([^+\s]+)\+([0-9a-f]{8})\+(\S+)\n?", utf8(raw))
    if found is None:
        raise Bad("not a verifier key")
    key = unbase64(found[3], 33)
    identity = sha(found[1].encode(), b"\n", key)[:4]
    if key[0] != 1 or identity.hex() != found[2]:
        raise Bad("the id of the key is not its own")
    return (found[1], identity), key[1:]


def read_note(raw: bytes, keys: Keys) -> Head:
    """Open a signed head: origin, size and root, signed by a key of `keys`, by none wrongly."""
    text, gap, block = utf8(raw).rpartition("\n\n")
    lines = block.split("\n")
    if len(raw) > 65536 or not gap or lines.pop() != "" or not 1 <= len(lines) <= 16:
        raise Bad("not a signed note")
    signatures: Keys = {}
    for line in lines:
        found = re.fullmatch(r"— ([^+\s]+) (\S+)", line)
        signature = unbase64(found[2]) if found else b""
        if found is None or len(signature) < 5 or (found[1], signature[:4]) in signatures:
            raise Bad("a signature is none, too short or given twice")
        signatures[found[1], signature[:4]] = signature[4:]
    trusted = keys.keys() & signatures.keys()
    if not trusted:
        raise Bad("not signed by a trusted key")
    for who in trusted:
        try:
            public = Ed25519PublicKey.from_public_bytes(keys[who])
            public.verify(signatures[who], text.encode() + b"\n")
        except InvalidSignature:
            raise Bad("the signature does not fit") from None
    parts = text.split("\n")
    if len(parts) != 3 or not parts[0]:
        raise Bad("a head has exactly origin, size and root")
    return Head(parts[0], decimal(parts[1]), unbase64(parts[2], 32))


def read_receipt(raw: bytes) -> tuple[int, list[bytes], bytes]:
    """Index, path and note of a receipt."""
    start, _, note = raw.decode().partition("\n\n")
    title, index, *path = start.split("\n")
    if title != "c2sp.org/tlog-proof@v1" or not index.startswith("index ") or len(path) > 64:
        raise Bad("not a receipt")
    return decimal(index[6:]), [unbase64(line, 32) for line in path], note.encode()


class Tree:
    """Subtree roots by height, as they become complete (RFC 9162 §2.1)."""

    def __init__(self) -> None:
        self.size = 0
        self.open: dict[int, bytes] = {}
        self.full: dict[int, list[bytes]] = {}

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        height, value = 0, leaf
        while (left := self.open.pop(height, None)) is not None:
            value, height = sha(b"\x01", left, value), height + 1
            if height % 8 == 0:
                self.full.setdefault(height // 8, []).append(value)
        self.open[height] = value
        self.size += 1

    def root(self) -> bytes:
        """The root now."""
        value = b""
        for height in sorted(self.open):
            value = sha(b"\x01", self.open[height], value) if value else self.open[height]
        return value or sha(b"")


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that an inclusion path leads to (RFC 9162 §2.1.3.2); None when it leads nowhere."""
    last, value = size - 1, leaf
    if index > last:
        return None
    for other in path:
        if last == 0:
            return None
        if index & 1 or index == last:
            value = sha(b"\x01", other, value)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            value = sha(b"\x01", value, other)
        index, last = index >> 1, last >> 1
    return None if last else value


def tile_name(kind: object, number: int, width: int) -> str:
    """`tile/KIND/x001/x234/067.p/WIDTH`."""
    digits = str(number)
    *groups, last = re.findall("...", "0" * (-len(digits) % 3) + digits)
    name = "".join(f"x{group}/" for group in groups) + last
    return f"tile/{kind}/{name}" + ("" if width == WIDTH else f".p/{width}")


def layout(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, number and width of every tile."""
    level = 0
    while size:
        for number in range(-(-size // WIDTH)):
            yield level, number, min(WIDTH, size - number * WIDTH)
        size, level = size // WIDTH, level + 1


def calls_itself(body: bytes) -> str:
    """Kind and id of a damaged record, as far as they can be read."""
    kind = re.search(rb'"type":"([a-z_.]{3,40})"', body)
    name = re.search(rb'"id":"([0-9a-f-]{36})"', body)
    return " ".join(found[1].decode() if found else "unreadable" for found in (kind, name))


def refuse(_: str) -> Any:
    """No record holds such a number."""
    raise Bad("a number that no record holds")


READER = json.JSONDecoder(parse_float=refuse, parse_constant=refuse)


def canonical(value: Any) -> bytes:
    """The one way to write a value."""
    return WRITER.encode(value).encode("utf-8", "surrogatepass")


def read_json(raw: bytes) -> dict[str, Any]:
    """A JSON object in canonical form, which repeats no member."""
    try:
        value = READER.decode(raw.decode())
        if isinstance(value, dict) and canonical(value) == raw:
            return value
    except RecursionError:
        pass
    raise Bad("not a JSON object in canonical form")


def read_record(body: bytes) -> dict[str, Any]:
    """The members of a record; LookupError when its version or kind is not known."""
    record = read_json(body)
    if type(record.get("v")) is not int or record["v"] != 1:
        raise LookupError("schema version is not known")
    if len(body) > 4096 or any(not isinstance(record.get(n), kind) for n, kind in SHAPE.items()):
        raise Bad("too long, or members are missing")
    if record["type"] not in KINDS:
        raise LookupError("record kind is not known")
    return record


def facts(record: dict[str, Any]) -> Facts:
    """Which call a record is about."""
    exchange, server, tool = map(record["subject"].get, ("exchange", "server", "tool"))
    mark = record.get("args", {}).get("commit")
    return Facts(exchange, server, tool, record.get("digest"), mark)


def differ(facts: Facts, asked: Facts) -> bool:
    """Whether a record tells of something else than was asked for."""
    return any(here is not None and here != there for here, there in zip(facts, asked, strict=True))


class House:
    """What holds for every request: who is shut out, and the remembered approvals by their id."""

    def __init__(self) -> None:
        self.disabled: set[str] = set()
        self.grants: dict[str, dict[str, Any]] = {}  # their records, with "used" and "over"

    def person(self, record: dict[str, Any]) -> None:
        """Somebody may sign in no longer, or again."""
        change = self.disabled.add if record.get("disabled") else self.disabled.discard
        change(record["subject"]["user"])

    def end(self, record: dict[str, Any]) -> Iterator[str]:
        """A grant answers nothing any more."""
        grant = self.grants.get(record["grant"])
        if grant is None or grant["over"]:
            yield "was no grant, or had ended"
        else:
            grant["over"] = True


class Story:
    """What the records have told of one approval request; steps yield what cannot have happened."""

    __slots__ = """alarmed asked askers broke decision differs fences first house leave quorum
        ruling settled stands verdicts""".split()

    def __init__(self, house: House) -> None:
        self.house = house
        self.stands: dict[str, str] = {}  # reviewer: for whom
        self.broke: set[str] = set()  # who broke the glass
        self.settled = ""  # by what it was decided
        self.ruling: tuple[str, str | None, Facts | None] = ("", None, None)  # effect, policy
        self.first = -1  # the record of the request
        self.asked: Facts | None = None
        self.askers: set[str | None] = set()
        self.quorum = 1
        self.verdicts: dict[str, str] = {}
        self.decision = ""
        self.fences: dict[Any, str] = {}  # outcome by fence, "" while it is open
        self.leave: set[tuple[Any, ...]] = set()  # exchange, server, tool, policy
        self.differs = -1
        self.alarmed = False

    def same(self, record: dict[str, Any], mark: str | None = None) -> Iterator[str]:
        """A step is about the call that was asked for."""
        told = facts(record)
        if self.asked is None:
            yield "was never requested"
        elif differ(told._replace(mark=mark) if mark else told, self.asked):
            yield "was requested as another call than this record is about"

    def rule(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """Policy speaks first."""
        if self.asked or self.ruling[0]:
            yield "was ruled on twice, or after it was requested"
        else:
            self.ruling = record["effect"], record.get("policy"), facts(record)

    def request(self, index: int, record: dict[str, Any]) -> Iterator[str]:
        """Reviewers are asked."""
        if self.asked is not None:
            yield "was requested twice"
            return
        self.first, self.asked, self.quorum = index, facts(record), record.get("quorum", 1)
        effect, policy, told = self.ruling
        if told and differ(told, self.asked):
            yield "was ruled on as another call"
        self.ruling = effect, policy, None
        self.askers = {record["actor"]["ref"], record.get("requester")} - {"gateway", None}

    def review(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """One person's review."""
        yield from self.same(record)
        who = record["actor"]["ref"]
        if self.decision:
            yield "was reviewed after it was decided"
        if who in self.askers:
            yield "was reviewed by who had asked for it"
        if who in self.verdicts:
            yield f"was reviewed twice by {who}"
        other, through = record.get("instead_of"), set(self.stands.values())
        if who in through or other in through or other in self.verdicts:
            yield "was reviewed twice by one person, once through another"
        self.verdicts[who] = record["verdict"]
        if other is not None:
            self.stands[who] = other

    def withdraw(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """A review is taken back, in time."""
        who = record["actor"]["ref"]
        if self.verdicts.pop(who, None) is None or self.decision:
            yield f"had no review by {who} to take back, or was decided"
        self.stands.pop(who, None)

    def emergency(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """Somebody approves it alone."""
        yield from self.same(record)
        who = record["actor"]["ref"]
        if self.decision or self.verdicts.get(who) != "approve":
            yield "was no emergency at that time"
        self.broke.add(who)

    def remember(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """The approval is remembered, within bounds."""
        if record["grant"] in self.house.grants:
            yield "was remembered under the id of another grant"
        if (self.decision, self.settled) != ("approve", "reviewers") or self.broke:
            yield "was remembered without a quorum that approved it"
        else:
            yield from self.same(record, self.asked and self.asked.mark)
        self.house.grants[record["grant"]] = {**record, "used": 0, "over": False}

    def by_grant(self, record: dict[str, Any]) -> Iterator[str]:
        """A grant answers a call that policy held: for what, until when and as often as it says."""
        grant = self.house.grants.get(record.get("grant", ""))
        if grant is None or self.decision != "approve":
            yield "was decided by no grant there is"
            return
        if self.ruling[0] != "hold":
            yield "was answered by a grant although policy did not hold it"
        if grant["over"] or record["ts"] >= grant["expires"]:
            yield "was answered by a grant that had ended"
        if any(
            record["subject"].get(name) != grant["subject"].get(name)
            for name in ("app", "server", "tool")
        ):
            yield "was answered by a grant for something else"
        grant["used"] += 1
        if record.get("use") != grant["used"] or grant["used"] > grant.get("max_uses", 1 << 53):
            yield "is not the use of its grant that it says"

    def decide(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """The decision, which needs what it says it rests on."""
        yield from self.same(record)
        by, who = record["decision"]["by"], record["actor"]["ref"]
        shut_out = self.house.disabled
        given = [v for name, v in self.verdicts.items() if v == "deny" or name not in shut_out]
        if self.decision:
            yield "was decided twice"
        self.decision, self.settled = record["decision"]["value"], by
        approved, (effect, policy) = self.decision == "approve", self.ruling[:2]
        if by == "reviewers":
            if who in self.askers:
                yield "was decided by who had asked for it"
            if approved == ("deny" in given):
                yield "was decided against its reviews"
            elif approved and given.count("approve") < self.quorum and who not in self.broke:
                yield "is below its quorum"
            if approved and effect == "deny":
                yield "was approved although policy denied it"
        elif by == "policy":
            if effect not in (("allow",) if approved else ("deny", "hold")):
                yield "was decided by policy without such a ruling"
            elif record.get("policy", policy) != policy:
                yield "was decided under another policy than it was ruled by"
        elif by == "grant":
            yield from self.by_grant(record)
        elif approved:
            yield "was decided by nobody who may"

    def release(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """The outcome is sent, once."""
        yield from self.same(record)
        if self.decision != "approve":
            yield "was released without an approving decision"
        if any(outcome != "not_sent" for outcome in self.fences.values()):
            yield "was released twice"
        self.fences[record["fence"]] = ""

    def supersede(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """An approval does not stand any more, and was not sent."""
        yield from self.same(record)
        if self.decision != "approve" or set(self.fences.values()) - {"not_sent"}:
            yield "was superseded without an approval that was still to be sent"
        self.decision = "superseded"

    def observe(self, index: int, record: dict[str, Any]) -> Iterator[str]:
        """What became of it: one outcome for one release, and what was approved."""
        fence, match = record.get("fence", next(reversed(self.fences), None)), record.get("match")
        asked = self.asked.mark if self.asked else None
        # Policy allowed it, and the upstream had leave not to ask.
        leave = (*facts(record)[:3], self.ruling[1]) in self.leave
        if leave and not self.fences and (self.decision, self.ruling[0]) == ("approve", "allow"):
            self.fences[fence] = ""
        before = self.fences.get(fence)
        if match is not False:
            yield from self.same(record, asked)
        if before is None and record["outcome"] != "not_sent":
            yield "was executed without release"
        elif before and not record.get("reconciled"):
            yield "has two outcomes for one release"
        self.fences[fence] = record["outcome"]
        other = facts(record).mark not in (None, asked)
        if other and match is True:
            yield "was approved with other arguments than were executed"
        elif other or match is False:
            self.differs = index

    def alarm(self, _: int, record: dict[str, Any]) -> Iterator[str]:
        """It was noticed that something else was executed."""
        self.alarmed = record["type"] == "execution.mismatch"
        yield from ()


STEPS = {
    "call.ruled": Story.rule,
    "approval.requested": Story.request,
    "approval.reviewed": Story.review,
    "review.withdrawn": Story.withdraw,
    "break_glass.used": Story.emergency,
    "grant.created": Story.remember,
    "approval.decided": Story.decide,
    "approval.superseded": Story.supersede,
    "release.sending": Story.release,
    "execution.observed": Story.observe,
    "execution.mismatch": Story.alarm,
}


class Folder:
    """The files of the export, and everything that is wrong with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = dict.fromkeys(sorted(self.walk(root)))
        self.faults: list[tuple[int, int, str]] = []  # layer, record or -1, text
        self.stories: dict[str, Story] = {}
        self.house = House()
        self.leave: set[tuple[Any, ...]] = set()
        self.ids: set[int] = set()
        self.pauses: dict[str, tuple[str, str | None]] = {}
        self.opened: tuple[bytes, Head] | None = None
        self.epoch = 0
        self.foreign = False  # whether the head does not authenticate the tiles

    def walk(self, folder: Path) -> Iterator[str]:
        """Every regular file; links and special files are refused."""
        for path in folder.iterdir():
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise Bad(f"{path} does not belong to an export")
            if path.is_dir():
                yield from self.walk(path)
            else:
                yield path.relative_to(self.root).as_posix()

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if name not in self.names:
            raise Bad("is missing")
        with (self.root / name).open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise Bad(f"{name} is too large")
        return content

    def below(self, prefix: str, given: list[str] | None = None) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the files of a folder, and of those given beside it."""
        for name in [name for name in self.names if name.startswith(prefix)]:
            yield name, self.read(name)
        for name in given or ():
            yield name, Path(name).read_bytes()

    def fault(self, layer: int, text: str, index: int = -1) -> None:
        """Note what is wrong."""
        if len(self.faults) < MOST:
            self.faults.append((layer, index, text))

    def trying(self, layer: int, name: str, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do it; what cannot be becomes a fault of the layer, and the result None."""
        try:
            return action(*arguments)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.fault(layer, f"{name}: {error}")
            return None

    def open(self, name: str, raw: bytes, keys: Keys) -> Head | None:
        """A signed head, or a fault; receipts repeat one note."""
        if self.opened is None or self.opened[0] != raw:
            found = self.trying(NOTES, name, read_note, raw, keys)
            if found is None:
                return None
            self.opened = raw, found
        return self.opened[1]

    def check(self, key: str | None, pins: list[str], receipts: list[str]) -> Head | None:
        """Run every layer."""
        if key is not None:
            found = [read_key(key.encode())]
        else:
            found = [self.trying(NOTES, n, read_key, raw) for n, raw in self.below("keys/")]
        keys = dict(filter(None, found))
        note = self.trying(NOTES, "checkpoint", self.read, "checkpoint")
        head: Head | None = note and self.open("checkpoint", note, keys)
        if head is not None:
            self.check_under(head, keys, pins, receipts)
        self.check_files(head)
        return head

    def check_under(self, head: Head, keys: Keys, pins: list[str], receipts: list[str]) -> None:
        """Everything that a signed head allows to check."""
        older: dict[str, Head] = {}
        for name, raw in self.below("checkpoints/", pins):
            if found := self.open(name, raw, keys):
                older[name] = found
        proofs: dict[str, tuple[int, list[bytes], Head]] = {}
        for name, raw in self.below("proofs/", receipts):
            parts = self.trying(HISTORY, name, read_receipt, raw)
            if parts and (found := self.open(name, parts[2], keys)):
                older[name] = found
                proofs[name] = parts[0], parts[1], found
        wanted = {found.size for found in older.values()}
        checked = self.check_tree(head, wanted, {proof[0] for proof in proofs.values()})
        if checked is None:
            return
        roots, leaves = checked
        if self.foreign:
            self.narrow(head, roots, list(older.values()))
        for name, found in older.items():
            if found.origin != head.origin:
                self.fault(HISTORY, f"{name} is of another ledger")
            elif found.size > head.size:
                self.fault(HISTORY, f"{name} is of {found.size} records, here are only {head.size}")
            elif roots[found.size] != found.root:
                self.fault(HISTORY, f"{name} was signed for other records below {found.size}")
        for name, (index, path, found) in proofs.items():
            fits = climb(leaves.get(index, b""), index, found.size, path) == found.root
            if not fits or (name.startswith("proofs/") and name != f"proofs/{index}.tlog-proof"):
                self.fault(HISTORY, f"{name} does not lead from this record to its head", index)
        for name, story in self.stories.items():
            if story.differs >= 0 and not story.alarmed:
                self.fault(ORDER, f"{name} was executed otherwise, without alarm", story.differs)
        self.check_payloads()

    def check_tree(
        self, head: Head, wanted: set[int], marked: set[int]
    ) -> tuple[dict[int, bytes], dict[int, bytes]] | None:
        """Entries against tiles, tiles against the head; roots and leaves where they are wanted."""
        tree, roots, leaves = Tree(), {0: sha(b"")}, {}
        suspects: list[tuple[int, str]] = []
        for level, number, width in layout(head.size):
            if level:
                break
            name, other = tile_name("entries", number, width), tile_name(0, number, width)
            bundle = self.trying(TREE, name, self.read, name)
            tile = self.trying(TREE, other, self.read, other)
            if bundle is None or tile is None:
                return None
            end, body = 0, b""
            for place in range(0, width * 32, 32):
                start = end + 2
                end = start + int.from_bytes(bundle[end:start], "big")
                body = bundle[start:end]
                leaf = sha(b"\x00", body)
                if leaf == tile[place : place + 32]:
                    self.take(tree.size, body)
                else:
                    suspects.append((tree.size, calls_itself(body)))
                if tree.size in marked:
                    leaves[tree.size] = leaf
                tree.add(leaf)
                if tree.size in wanted:
                    roots[tree.size] = tree.root()
                if end > len(bundle):
                    break
            if end != len(bundle) or len(tile) != width * 32:
                index, words = suspects[0] if suspects else (tree.size - 1, calls_itself(body))
                self.fault(TREE, f"{name} or its tile has another length ({words})", index)
            if end > len(bundle):
                break
        roots[tree.size] = tree.root()
        whole = (tree.size, tree.root()) == (head.size, head.root)
        side = "hash in the tile" if whole else "bytes"
        for index, words in suspects[:MOST]:
            self.fault(TREE, f"its {side} are not what was signed ({words})", index)
        self.foreign = not (whole or suspects)
        if tree.size != head.size:
            return None
        self.check_upper(head, tree)
        return roots, leaves

    def check_upper(self, head: Head, tree: Tree) -> None:
        """Tiles above the leaves."""
        for level, number, width in layout(head.size):
            name, first = tile_name(level, number, width), number * WIDTH
            if level == 0:
                continue
            expected = b"".join(tree.full[level][first : first + width])
            content = self.trying(TREE, name, self.read, name)
            if content is not None and content != expected:
                at = (
                    next(
                        (n for n in range(width * 32) if content[n : n + 1] != expected[n : n + 1]),
                        0,
                    )
                    // 32
                )
                start, end = (first + at) * WIDTH**level, (first + at + 1) * WIDTH**level
                self.fault(
                    TREE, f"{name} has another hash over records {start} to {end - 1}", start
                )

    def narrow(self, head: Head, roots: dict[int, bytes], older: list[Head]) -> None:
        """Where tiles that the head does not authenticate may have been changed."""
        known = [found for found in older if found.size in roots]
        breaks = min([h.size for h in known if roots[h.size] != h.root], default=head.size)
        fits = [h.size for h in known if roots[h.size] == h.root and h.size < breaks]
        first = max(fits, default=0)
        text = f"the head does not authenticate the records {first} to {breaks - 1}"
        self.fault(TREE, text, first)

    def take(self, index: int, body: bytes) -> None:
        """Read one record and put it into the stories that it belongs to."""
        try:
            record = read_record(body)
            identity = int(record["id"].replace("-", ""), 16)
        except LookupError as error:
            self.fault(UNKNOWN, f"unsupported: {error} ({calls_itself(body)})", index)
            return
        except ValueError as error:
            self.fault(ORDER, f"malformed record: {error} ({calls_itself(body)})", index)
            return
        if identity in self.ids:
            self.fault(ORDER, "its id stands in the ledger already", index)
        self.ids.add(identity)
        try:
            self.sort(index, record)
        except (KeyError, TypeError, AttributeError):
            self.fault(ORDER, f"malformed record ({calls_itself(body)})", index)

    def sort(self, index: int, record: dict[str, Any]) -> None:
        """Tell it to the approval request that it is about."""
        kind, subject = record["type"], record["subject"]
        if kind == "ledger.started":
            if record["epoch"] <= self.epoch:
                self.fault(ORDER, "the election number went back", index)
            self.epoch = record["epoch"]
        elif kind == "user.changed":
            self.house.person(record)
        elif kind == "grant.ended":
            for text in self.house.end(record):
                self.fault(ORDER, f"{record['grant']} {text}", index)
        elif kind == "pause.begun":
            self.pauses[record["pause"]] = record["covers"], subject.get(record["covers"])
        elif kind == "pause.ended":
            if self.pauses.pop(record["pause"], None) is None:
                self.fault(ORDER, "a pause ended that was not in force", index)
        elif kind == "execution.mismatch" and "approval" not in subject:
            pass  # something that nobody had asked for
        elif kind == "call.preallowed":
            of = subject.get("exchange"), subject.get("server")
            self.leave.update((*of, tool, record["policy"]) for tool in record["tools"])
        elif kind in STEPS and record.get("approve") is not False:
            name = subject["approval"]
            covered = (s == "all" or subject.get(s) == n for s, n in self.pauses.values())
            if kind == "release.sending" and any(covered):
                self.fault(ORDER, f"{name} was released although a pause was in force", index)
            story = self.stories.setdefault(name, Story(self.house))
            story.leave = self.leave
            for text in STEPS[kind](story, index, record):
                self.fault(ORDER, f"{name} {text}", index)

    def check_payloads(self) -> None:
        """Opened payloads against the commitments in their requests."""
        for name, raw in self.below("payloads/"):
            approval = name.removeprefix("payloads/").removesuffix(".json")
            story = self.stories.get(approval)
            mark = self.trying(PAYLOADS, name, opening, raw, approval)
            if story is None or story.asked is None or mark != story.asked.mark:
                index = story.first if story else -1
                self.fault(PAYLOADS, f"{name} is not what was put before reviewers", index)

    def check_files(self, head: Head | None) -> None:
        """The manifest, rebuilt from the files, and no file beside them."""
        known = head or Head("", 0, sha(b""))
        places = set()
        if known.size <= WIDTH * len(self.names):  # a head may claim any size
            for level, number, width in layout(known.size):
                places.add(tile_name(level, number, width))
                if level == 0:
                    places.add(tile_name("entries", number, width))
        listed = {}
        for name in self.names:
            if name not in places and FILE_NAMES.fullmatch(name) is None:
                self.fault(FILES, f"{name} belongs to no export")
            if name != "manifest.json":
                content = self.read(name)
                listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        rebuilt: dict[str, Any] = {"format": "gatepass.evidence/1", "files": listed}
        rebuilt |= {"origin": known.origin, "size": known.size, "root": known.root.hex()}
        given = self.trying(FILES, "manifest.json", self.read, "manifest.json")
        if given is not None and given != canonical(rebuilt):
            said = (
                self.trying(FILES, "manifest.json", lambda: dict(json.loads(given)["files"])) or {}
            )
            wrong = [name for name in {**said, **listed} if said.get(name) != listed.get(name)]
            for name in wrong or ["manifest.json"]:
                self.fault(FILES, f"{name} is not as manifest.json names it")


def opening(raw: bytes, approval: str) -> str:
    """The commitment to an opened payload."""
    opened = read_json(raw)
    blind = bytes.fromhex(opened["blind"])
    if set(opened) != {"approval", "arguments", "blind"} or opened["approval"] != approval:
        raise Bad("it opens something else")
    if len(blind) != 32 or opened["blind"] != blind.hex():
        raise Bad("a blind has 32 bytes")
    return "hmac-sha256:" + hmac.digest(blind, opened["arguments"].encode(), "sha256").hex()


def main(arguments: list[str]) -> int:
    """Check one folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check an evidence folder of Gatepass.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", help="the verifier key you trust, instead of those in the folder")
    for option, text in (("--pin", "a signed head"), ("--receipt", "a .tlog-proof")):
        parser.add_argument(option, action="append", default=[], help=f"{text} kept from earlier")
    options = parser.parse_args(arguments)
    try:
        folder = Folder(options.folder)
        head = folder.check(options.key, options.pin, options.receipt)
    except (ValueError, OSError) as error:
        sys.stdout.write(f"REFUSED: {error}\n")
        return FILES
    for layer, index, text in sorted(folder.faults):
        place = f"record {index}: " if index >= 0 else ""
        sys.stdout.write(f"{layer} {place}{text}\n")
    if folder.faults or head is None:
        sys.stdout.write("NOT SOUND\n")
        return min((layer for layer, _, _ in folder.faults), default=NOTES)
    if options.key is None:
        sys.stdout.write("The key was taken from the folder: compare it with one you trust.\n")
    sys.stdout.write(f"SOUND: {head.size} records, root {head.root.hex()}, origin {head.origin}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
