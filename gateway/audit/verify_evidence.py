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
# ruff: noqa: B023, C901, PLR0912, PLR0915

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
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NOTES, TREE, HISTORY, ORDER, PAYLOADS, FILES, UNKNOWN = 11, 12, 13, 15, 16, 17, 18
WIDTH, LARGEST, MOST = 256, 256 << 20, 100
KINDS = frozenset(
    {
        "app.changed",
        "app.created",
        "app.removed",
        "app_key.created",
        "app_key.revoked",
        "approval.decided",
        "approval.requested",
        "approval.reviewed",
        "call.ruled",
        "config.applied",
        "credential.written",
        "exchange.finished",
        "exchange.opened",
        "execution.mismatch",
        "execution.observed",
        "export.made",
        "group.changed",
        "ledger.heartbeat",
        "ledger.started",
        "link.created",
        "payload.read",
        "policy.activated",
        "release.sending",
        "request.completed",
        "security.overridden",
        "security.refused",
        "server.changed",
        "server.registered",
        "server.removed",
        "token.created",
        "token.revoked",
        "tooldef.accepted",
        "tooldef.changed",
        "tooldef.pinned",
        "user.changed",
        "user.created",
        "user.signed_in",
        "user.signed_out",
    }
)
FILE_NAMES = re.compile(
    r"(?:checkpoint|manifest\.json|VERIFY\.md|verify_evidence\.py|checkpoints/\d{1,19}\.note"
    r"|proofs/\d{1,19}\.tlog-proof|keys/[0-9a-f]{8}\.vkey|payloads/[a-z0-9_]{1,80}\.json)"
)


class Bad(Exception):
    """Something that cannot be what it should be."""


class Head(NamedTuple):
    """A signed head."""

    origin: str
    size: int
    root: bytes


class Fault(NamedTuple):
    """One thing that is wrong; `record` is -1 when no single record is at fault."""

    layer: int
    record: int
    text: str


def sha(*parts: bytes) -> bytes:
    """SHA-256 of the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text: str) -> bytes:
    """Base64 in its one canonical form."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeError):
        raise Bad("not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise Bad("base64 with altered padding")
    return raw


def decimal(text: str) -> int:
    """A plain decimal below 2^62."""
    if re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) is None or int(text) > 1 << 62:
        raise Bad("not a plain decimal number")
    return int(text)


def utf8(raw: bytes) -> str:
    """Text without control characters but line ends."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Bad("not UTF-8") from None
    if re.search(r"[\x00-\x09\x0b-\x1f]", text):
        raise Bad("a control character")
    return text


def read_key(line: str) -> tuple[tuple[str, bytes], bytes]:
    """A verifier key line as ((name, id), public key)."""
    found = re.fullmatch(r"([^+\s]+)\+([0-9a-f]{8})\+(\S+)", line)
    if found is None:
        raise Bad("not a verifier key")
    raw = unbase64(found[3])
    identity = sha(found[1].encode(), b"\n", raw)[:4]
    if len(raw) != 33 or raw[0] != 1 or identity.hex() != found[2]:
        raise Bad("the id of the key is not its own")
    return (found[1], identity), raw[1:]


def read_note(raw: bytes, keys: dict[tuple[str, bytes], bytes]) -> Head:
    """Open a signed head."""
    if len(raw) > 65536:
        raise Bad("the note is too long")
    text, gap, block = utf8(raw).rpartition("\n\n")
    lines = block.split("\n")
    if not gap or not text or lines.pop() != "" or not 1 <= len(lines) <= 16:
        raise Bad("not a signed note")
    seen = set()
    signed = False
    for line in lines:
        found = re.fullmatch(r"— ([^+\s]+) (\S+)", line)
        if found is None:
            raise Bad("not a signature line")
        signature = unbase64(found[2])
        who = found[1], signature[:4]
        if len(signature) < 5 or who in seen:
            raise Bad("a signature is too short or given twice")
        seen.add(who)
        if who in keys:
            check_signature(keys[who], signature[4:], text)
            signed = True
    if not signed:
        raise Bad("not signed by a trusted key")
    return read_head(text)


def check_signature(public: bytes, signature: bytes, text: str) -> None:
    """Ed25519 over the text with its last line end."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode() + b"\n")
    except InvalidSignature:
        raise Bad("the signature does not fit") from None


def read_head(text: str) -> Head:
    """Origin, size and root, one a line."""
    lines = text.split("\n")
    if len(lines) != 3 or not lines[0]:
        raise Bad("a head has exactly origin, size and root")
    root = unbase64(lines[2])
    if len(root) != 32:
        raise Bad("a root has 32 bytes")
    return Head(lines[0], decimal(lines[1]), root)


class Tree:
    """Subtree roots by height, as they become complete."""

    def __init__(self) -> None:
        self.size = 0
        self.open: dict[int, bytes] = {}
        self.full: dict[int, list[bytes]] = {}

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        height, value = 0, leaf
        while True:
            if height and height % 8 == 0:
                self.full.setdefault(height // 8, []).append(value)
            left = self.open.pop(height, None)
            if left is None:
                break
            value, height = sha(b"\x01", left, value), height + 1
        self.open[height] = value
        self.size += 1

    def root(self) -> bytes:
        """The root now."""
        value = b""
        for height in sorted(self.open):
            value = sha(b"\x01", self.open[height], value) if value else self.open[height]
        return value or sha(b"")


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that an inclusion path leads to (RFC 9162 §2.1.3.2)."""
    last, value = size - 1, leaf
    if not 0 <= index <= last:
        raise Bad("the index lies outside")
    for other in path:
        if last == 0:
            raise Bad("the path is too long")
        if index & 1 or index == last:
            value = sha(b"\x01", other, value)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            value = sha(b"\x01", value, other)
        index, last = index >> 1, last >> 1
    if last:
        raise Bad("the path is too short")
    return value


def tile_name(kind: str, number: int, width: int) -> str:
    """`tile/KIND/x001/x234/067.p/WIDTH`."""
    digits = str(number)
    digits = "0" * (-len(digits) % 3) + digits
    parts = re.findall("...", digits)
    name = "/".join(["x" + part for part in parts[:-1]] + parts[-1:])
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
    return " ".join(
        [
            kind[1].decode() if kind else "unreadable kind",
            name[1].decode() if name else "unreadable id",
        ]
    )


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated members."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Bad("a member stands twice")
    return made


def refuse(_: str) -> Any:
    """No record holds such a number."""
    raise Bad("a number that no record holds")


def canonical(value: Any) -> bytes:
    """RFC 8785 for the values that are allowed here."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def read_json(raw: bytes) -> dict[str, Any]:
    """A JSON object in canonical form."""
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=once, parse_float=refuse, parse_constant=refuse
        )
    except (ValueError, RecursionError):
        raise Bad("not JSON") from None
    if not isinstance(value, dict) or canonical(value) != raw:
        raise Bad("not in canonical form")
    return value


def read_record(body: bytes) -> dict[str, Any]:
    """The members of a record; LookupError when its version or kind is not known."""
    record = read_json(body)
    if len(body) > 4096:
        raise Bad("longer than 4096 bytes")
    if type(record.get("v")) is not int or record["v"] != 1:
        raise LookupError("schema version is not known")
    shape = {"id": str, "type": str, "ts": str, "actor": dict, "subject": dict}
    if any(not isinstance(record.get(name), kind) for name, kind in shape.items()):
        raise Bad("members of a record are missing")
    if record["type"] not in KINDS:
        raise LookupError("record kind is not known")
    return record


class Folder:
    """The files of the export, and everything that is wrong with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = sorted(self.walk(root))
        self.faults: list[Fault] = []
        self.events: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.alarms: set[str] = set()
        self.allowed: dict[str, list[dict[str, Any]]] = {}
        self.sent: dict[tuple[str, str], str] = {}
        self.ids: set[str] = set()
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
        with (self.root / name).open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise Bad(f"{name} is too large")
        return content

    def fault(self, layer: int, text: str, index: int = -1) -> None:
        """Note what is wrong."""
        if len(self.faults) < MOST:
            self.faults.append(Fault(layer, index, text))

    def trying(self, layer: int, name: str, action: Callable[[], Any]) -> Any:
        """Do it; a `Bad` becomes a fault of the layer, and the result None."""
        try:
            return action()
        except (Bad, KeyError, TypeError, ValueError, AttributeError) as error:
            self.fault(layer, f"{name}: {error}")
            return None

    def below(self, prefix: str) -> list[str]:
        """Names that start with the prefix."""
        return [name for name in self.names if name.startswith(prefix)]

    def check(self, key: str | None, pins: list[str], receipts: list[str]) -> Head | None:
        """Run every layer."""
        keys = dict(self.keys(key))
        head: Head | None = None
        if "checkpoint" in self.names:
            head = self.trying(
                NOTES, "checkpoint", lambda: read_note(self.read("checkpoint"), keys)
            )
        else:
            self.fault(NOTES, "checkpoint is missing")
        if head is not None:
            self.check_under(head, keys, pins, receipts)
        self.check_files(head)
        return head

    def keys(self, given: str | None) -> Iterator[tuple[tuple[str, bytes], bytes]]:
        """The given key, or those in the folder."""
        if given is not None:
            yield read_key(given)
            return
        for name in self.below("keys/"):
            line = self.read(name)
            found = self.trying(NOTES, name, lambda: read_key(utf8(line).removesuffix("\n")))
            if found is not None:
                yield found

    def check_under(
        self, head: Head, keys: dict[tuple[str, bytes], bytes], pins: list[str], receipts: list[str]
    ) -> None:
        """Everything that a signed head allows to check."""
        older: list[tuple[str, Head]] = []
        for name in [*self.below("checkpoints/"), *pins]:
            raw = Path(name).read_bytes() if name in pins else self.read(name)
            found = self.trying(NOTES, name, lambda: read_note(raw, keys))
            if found is not None:
                older.append((name, found))
        proofs = []
        for name in [*self.below("proofs/"), *receipts]:
            raw = Path(name).read_bytes() if name in receipts else self.read(name)
            proof = self.trying(HISTORY, name, lambda: self.proof(raw))
            found = proof and self.trying(NOTES, name, lambda: read_note(proof[2], keys))
            if found:
                proofs.append((name, proof[0], proof[1], found))
        wanted = {found.size for _, found in older} | {row[3].size for row in proofs}
        roots, leaves = self.check_tree(head, wanted, {row[1] for row in proofs})
        if roots is None:
            return
        self.narrow(head, roots, older)
        for name, found in older + [(row[0], row[3]) for row in proofs]:
            self.check_history(head, roots, name, found)
        for name, index, path, found in proofs:
            self.check_proof(leaves.get(index, b""), name, index, path, found)
        self.check_stories()
        self.check_payloads()

    def proof(self, raw: bytes) -> tuple[int, list[bytes], bytes]:
        """Index, path and note of a receipt."""
        try:
            start, _, note = raw.decode().partition("\n\n")
        except UnicodeDecodeError:
            raise Bad("not UTF-8") from None
        lines = start.split("\n")
        if lines[0] != "c2sp.org/tlog-proof@v1" or not 2 <= len(lines) <= 66:
            raise Bad("not a receipt")
        if not lines[1].startswith("index "):
            raise Bad("a receipt names its index")
        path = [unbase64(line) for line in lines[2:]]
        if any(len(item) != 32 for item in path):
            raise Bad("a hash has 32 bytes")
        return decimal(lines[1][6:]), path, note.encode()

    def check_tree(
        self, head: Head, wanted: set[int], marked: set[int]
    ) -> tuple[dict[int, bytes] | None, dict[int, bytes]]:
        """Entries against tiles, tiles against the head."""
        tree, kept = Tree(), Tree()
        roots: dict[int, bytes] = {0: sha(b"")}
        leaves: dict[int, bytes] = {}
        suspects: list[tuple[int, str]] = []
        for level, number, width in layout(head.size):
            if level:
                break
            names = tile_name("entries", number, width), tile_name("0", number, width)
            missing = [name for name in names if name not in self.names]
            if missing:
                self.fault(TREE, f"{missing[0]} is missing")
                return None, leaves
            bundle, tile = self.read(names[0]), self.read(names[1])
            at, body = 0, b""
            for place in range(width):
                index = number * WIDTH + place
                end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
                body, at = bundle[at + 2 : end], end
                leaf, hashed = sha(b"\x00", body), tile[place * 32 : place * 32 + 32]
                tree.add(leaf)
                kept.add(hashed)
                if tree.size in wanted:
                    roots[tree.size] = tree.root()
                if index in marked:
                    leaves[index] = leaf
                if leaf == hashed:
                    self.take(index, body)
                else:
                    suspects.append((index, calls_itself(body)))
                if end > len(bundle):
                    break
            if at != len(bundle) or len(tile) != width * 32:
                index, words = suspects[0] if suspects else (tree.size - 1, calls_itself(body))
                self.fault(TREE, f"{names[0]} or its tile has another length ({words})", index)
            if tree.size != min(head.size, (number + 1) * WIDTH):
                break
        self.blame(head, tree, kept, suspects)
        self.foreign = not suspects and kept.root() != head.root
        if tree.size != head.size:
            self.narrow(head, roots, [])
            return None, leaves
        self.check_upper(head, tree)
        return roots, leaves

    def blame(self, head: Head, tree: Tree, kept: Tree, suspects: list[tuple[int, str]]) -> None:
        """Say which side of a difference is the altered one."""
        whole = (tree.size, tree.root()) == (head.size, head.root)
        for index, words in suspects[:MOST]:
            if whole:
                self.fault(TREE, f"its hash in the tile is not that of the record ({words})", index)
            else:
                self.fault(TREE, f"its bytes are not those that were signed ({words})", index)

    def narrow(self, head: Head, roots: dict[int, bytes], older: list[tuple[str, Head]]) -> None:
        """Where tiles that the head does not authenticate may have been changed."""
        if not self.foreign:
            return
        known = [found for _, found in older if found.size in roots]
        breaks = min([h.size for h in known if roots[h.size] != h.root], default=head.size)
        breaks = min(breaks, head.size)
        fits = [h.size for h in known if roots[h.size] == h.root and h.size < breaks]
        first = max(fits, default=0)
        self.fault(
            TREE,
            f"the head does not authenticate the tiles; the change is in the records {first} to "
            f"{breaks - 1}",
            first,
        )

    def check_upper(self, head: Head, tree: Tree) -> None:
        """Tiles above the leaves."""
        for level, number, width in layout(head.size):
            if level == 0:
                continue
            name = tile_name(str(level), number, width)
            if name not in self.names:
                self.fault(TREE, f"{name} is missing")
                continue
            first = number * WIDTH
            expected = b"".join(tree.full[level][first : first + width])
            content = self.read(name)
            if content != expected:
                at = next(
                    (
                        n
                        for n, pair in enumerate(zip(content, expected, strict=False))
                        if pair[0] != pair[1]
                    ),
                    0,
                )
                span = WIDTH**level
                start = (first + at // 32) * span
                self.fault(
                    TREE,
                    f"{name} has another hash over records {start} to {start + span - 1}",
                    start,
                )

    def check_history(self, head: Head, roots: dict[int, bytes], name: str, older: Head) -> None:
        """An older head must be the root of the same records."""
        if older.origin != head.origin:
            self.fault(HISTORY, f"{name} is of another ledger")
        elif older.size > head.size:
            self.fault(HISTORY, f"{name} was signed at {older.size}, here are only {head.size}")
        elif roots.get(older.size) != older.root:
            self.fault(HISTORY, f"{name} was signed for other records below {older.size}")

    def check_proof(
        self, leaf: bytes, name: str, index: int, path: list[bytes], head: Head
    ) -> None:
        """A receipt must lead from its record to its head."""
        try:
            fits = climb(leaf, index, head.size, path) == head.root
        except Bad:
            fits = False
        if not fits or (name.startswith("proofs/") and name != f"proofs/{index}.tlog-proof"):
            self.fault(HISTORY, f"{name} does not lead from this record to its head", index)

    def take(self, index: int, body: bytes) -> None:
        """Read one record and keep what its story needs."""
        try:
            record = read_record(body)
        except LookupError as error:
            self.fault(UNKNOWN, f"unsupported: {error} ({calls_itself(body)})", index)
            return
        except Bad as error:
            self.fault(ORDER, f"malformed record: {error} ({calls_itself(body)})", index)
            return
        if record["id"] in self.ids:
            self.fault(ORDER, "its id stands in the ledger already", index)
        self.ids.add(record["id"])
        try:
            self.sort(index, record)
        except (KeyError, TypeError, AttributeError):
            self.fault(ORDER, f"malformed record ({calls_itself(body)})", index)

    def sort(self, index: int, record: dict[str, Any]) -> None:
        """Put a record into the story of its approval request."""
        kind, subject = record["type"], record["subject"]
        call = str(record.get("call") or subject.get("call", ""))
        match kind:
            case "ledger.started":
                if record["epoch"] <= self.epoch:
                    self.fault(ORDER, "the election number went back", index)
                self.epoch = record["epoch"]
            case "call.ruled" if record["effect"] == "allow":
                self.allowed.setdefault(subject["exchange"], []).append(subject | {"call": call})
            case "approval.requested" | "approval.reviewed" | "approval.decided":
                self.events.setdefault(subject["approval"], []).append((index, record))
            case "execution.mismatch":
                self.alarms.add(subject.get("approval", ""))
            case "release.sending" if record.get("approve") is not False:
                names = {*record.get("approvals", ()), *filter(None, [subject.get("approval")])}
                for name in names:
                    shown = record if len(names) == 1 else {**record, "subject": {}, "args": {}}
                    self.events.setdefault(name, []).append((index, shown))
                if not names and not self.is_allowed(subject, call):
                    self.fault(ORDER, "release without decision or allowing rule", index)
                self.sent[subject["exchange"], call] = ""
            case "execution.observed" if "approval" in subject:
                self.events.setdefault(subject["approval"], []).append((index, record))
            case "execution.observed":
                key = subject["exchange"], call
                before = self.sent.get(key, self.sent.get((key[0], "")))
                if before is None and record["outcome"] != "not_sent":
                    self.fault(ORDER, "execution without release", index)
                elif before and call and not record.get("reconciled"):
                    self.fault(ORDER, "two outcomes for one release", index)
                if key in self.sent:
                    self.sent[key] = record["outcome"]
            case _:
                pass

    def is_allowed(self, subject: dict[str, Any], call: str) -> bool:
        """Whether a rule allowed such a call in this exchange."""
        for known in self.allowed.get(subject["exchange"], []):
            same = all(
                known.get(name) == subject.get(name, known.get(name)) for name in ("server", "tool")
            )
            if same and (not call or not known["call"] or call == known["call"]):
                return True
        return False

    def check_stories(self) -> None:
        """Every approval request: asked, reviewed, decided, released, executed."""
        for name, events in self.events.items():
            for index, text in story(name, events, alarmed=name in self.alarms):
                self.fault(ORDER, text, index)

    def check_payloads(self) -> None:
        """Opened payloads against the commitments in their requests."""
        for name in self.below("payloads/"):
            approval = name[9:-5]
            asked = [
                row
                for row in self.events.get(approval, [])
                if row[1]["type"] == "approval.requested"
            ]
            if not asked:
                self.fault(PAYLOADS, f"{name} belongs to no request")
                continue
            index, record = asked[0]
            opened = self.trying(
                PAYLOADS, f"{name} (record {index})", lambda: read_json(self.read(name))
            )
            if opened is None or not opens(opened, approval, record):
                self.fault(PAYLOADS, f"{name} is not what was put before reviewers", index)

    def check_files(self, head: Head | None) -> None:
        """The manifest, rebuilt from the files, and no file beside them."""
        known = head or Head("", 0, sha(b""))
        places = set()
        if known.size <= WIDTH * len(self.names):
            for level, number, width in layout(known.size):
                places.add(tile_name(str(level), number, width))
                if level == 0:
                    places.add(tile_name("entries", number, width))
        listed = {}
        for name in self.names:
            if name not in places and FILE_NAMES.fullmatch(name) is None:
                self.fault(FILES, f"{name} belongs to no export")
            if name != "manifest.json":
                content = self.read(name)
                listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        rebuilt = {
            "format": "gatepass.evidence/1",
            "origin": known.origin,
            "size": known.size,
            "root": known.root.hex(),
            "files": listed,
        }
        if "manifest.json" not in self.names:
            self.fault(FILES, "manifest.json is missing")
            return
        content = self.read("manifest.json")
        if content != canonical(rebuilt):
            self.explain(content, listed)

    def explain(self, content: bytes, listed: dict[str, dict[str, Any]]) -> None:
        """Which files differ from the manifest."""
        try:
            given = json.loads(content)["files"]
            names = sorted({*given, *listed})
        except (ValueError, KeyError, TypeError, RecursionError):
            self.fault(FILES, "manifest.json cannot be read")
            return
        wrong = [name for name in names if given.get(name) != listed.get(name)]
        for name in wrong:
            self.fault(FILES, f"{name} is not as manifest.json names it")
        if not wrong:
            self.fault(FILES, "manifest.json is not the one of these files")


def opens(opened: dict[str, Any], approval: str, record: dict[str, Any]) -> bool:
    """Whether an opened payload is what its request committed to."""
    try:
        blind, raw = bytes.fromhex(opened["blind"]), opened["arguments"].encode()
        mark = "hmac-sha256:" + hmac.digest(blind, raw, "sha256").hex()
        return (
            set(opened) == {"approval", "arguments", "blind"}
            and opened["approval"] == approval
            and opened["blind"] == blind.hex()
            and len(blind) == 32
            and mark == record["args"]["commit"]
        )
    except (KeyError, ValueError, AttributeError, TypeError):
        return False


def story(
    name: str, events: list[tuple[int, dict[str, Any]]], *, alarmed: bool
) -> Iterator[tuple[int, str]]:
    """What cannot have happened to one approval request under the rules."""
    asked: dict[str, Any] | None = None
    verdicts: dict[str, str] = {}
    decision: dict[str, Any] | None = None
    fences: dict[Any, str] = {}
    differs = -1
    for index, record in events:
        who, kind = record["actor"]["ref"], record["type"]
        if kind == "approval.requested":
            if asked is not None:
                yield index, f"{name} was requested twice"
            else:
                asked = record
            continue
        if kind in ("approval.reviewed", "approval.decided", "execution.observed") and not asked:
            yield index, f"{name} was never requested"
            continue
        asking = asked or {"actor": {"ref": ""}, "subject": {}}
        askers = {asking["actor"]["ref"], asking.get("requester")} - {"gateway", None, ""}
        if kind != "execution.observed" and asked and differs_from(record, asked):
            yield index, f"it is about another call than the request of {name}"
        if kind == "approval.reviewed":
            if decision:
                yield index, f"{name} was reviewed after it was decided"
            if who in askers:
                yield index, f"{name} was reviewed by who had asked for it"
            if who in verdicts:
                yield index, f"{who} reviewed {name} twice"
            verdicts[who] = record["verdict"]
        elif kind == "approval.decided":
            if decision:
                yield index, f"{name} was decided twice"
            decision = record["decision"]
            given = list(verdicts.values())
            if decision["by"] == "reviewers" and who in askers:
                yield index, f"{name} was decided by who had asked for it"
            if decision["value"] == "approve":
                if decision["by"] in ("expiry", "cancelled"):
                    yield index, f"{name} was approved by nobody"
                elif decision["by"] == "reviewers" and "deny" in given:
                    yield index, f"{name} was approved although a reviewer denied it"
                elif decision["by"] == "reviewers" and given.count("approve") < asking.get(
                    "quorum", 1
                ):
                    yield index, f"{name} is below its quorum"
            elif decision["by"] == "reviewers" and "deny" not in given:
                yield index, f"{name} was denied by no reviewer"
        elif kind == "release.sending":
            if not decision or decision["value"] != "approve":
                yield index, f"{name} was released without an approving decision"
            if any(outcome != "not_sent" for outcome in fences.values()):
                yield index, f"{name} was released twice"
            fences[record["fence"]] = ""
        elif kind == "execution.observed":
            fence = record.get("fence", next(reversed(fences), None))
            before, outcome = fences.get(fence), record["outcome"]
            if before is None and outcome != "not_sent":
                yield index, f"{name} was executed without release"
            elif before and not record.get("reconciled"):
                yield index, f"{name} has two outcomes for one fence"
            fences[fence] = outcome
            mark = asking["args"]["commit"]
            other = record.get("args", {}).get("commit", mark) != mark
            if record.get("match") is not False and differs_from({**record, "args": {}}, asking):
                yield index, f"it is about another call than the request of {name}"
            if other and record.get("match") is True:
                yield index, f"what was executed for {name} is not what was approved"
            elif other or record.get("match") is False:
                differs = index
    if differs >= 0 and not alarmed:
        yield differs, f"what was executed for {name} differs from what was approved, without alarm"


def differs_from(record: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a record of a story is about something else than its request."""
    for member in ("exchange", "server", "tool"):
        here, there = record["subject"].get(member), asked["subject"].get(member)
        if here is not None and here != there:
            return True
    if "digest" in record and "digest" in asked and record["digest"] != asked["digest"]:
        return True
    mark = asked["args"]["commit"]
    return bool(record.get("args", {}).get("commit", mark) != mark)


def main(arguments: list[str]) -> int:
    """Check one folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check an evidence folder of Gatepass.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", help="the verifier key you trust, instead of those in the folder")
    parser.add_argument(
        "--pin", action="append", default=[], help="a signed head kept from earlier"
    )
    parser.add_argument(
        "--receipt", action="append", default=[], help="a .tlog-proof kept from earlier"
    )
    options = parser.parse_args(arguments)
    try:
        folder = Folder(options.folder)
        head = folder.check(options.key, options.pin, options.receipt)
    except (Bad, OSError) as error:
        sys.stdout.write(f"REFUSED: {error}\n")
        return FILES
    for layer, index, text in sorted(folder.faults):
        place = f"record {index}: " if index >= 0 else ""
        sys.stdout.write(f"{layer} {place}{text}\n")
    if folder.faults or head is None:
        sys.stdout.write("NOT SOUND\n")
        return min((fault.layer for fault in folder.faults), default=NOTES)
    if options.key is None:
        sys.stdout.write("The key was taken from the folder: compare it with one you trust.\n")
    sys.stdout.write(f"SOUND: {head.size} records, root {head.root.hex()}, origin {head.origin}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
