"""A ledger with a whole story in it, and exports of it, for tests of the verifiers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from gateway.audit import checkpoint, tree
from gateway.audit.export import Opening
from gateway.audit.folder import describe, manifest
from gateway.audit.records import SYSTEM, Actor, Record, commit, make
from tests.support.clock import FakeClock
from tests.support.ledger import signer

BLIND = bytes(range(32))
ARGUMENTS = b'{"to":"ann@example.org","amount":5}'
APP = Actor("app", "app_1", "key")
ANN = Actor("user", "usr_ann", "session")
BO = Actor("user", "usr_bo", "session")
DIGEST = "sha256:" + "ab" * 32


def args(raw: bytes = ARGUMENTS) -> dict[str, object]:
    return {"commit": commit(BLIND, raw), "bytes": len(raw), "class": "strict-json"}


class Teller:
    """Makes the records of approval requests, one step at a time."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.records: list[Record] = []

    def add(self, kind: str, actor: Actor, subject: dict[str, str], **fields: object) -> Record:
        now: datetime = self.clock.advance(0.25)
        record = make(
            kind, now=now, actor=actor, subject=subject, key=str(len(self.records)), fields=fields
        )
        self.records.append(record)
        return record

    def subject(self, name: str) -> dict[str, str]:
        exchange = f"exc_{name}"
        found = {"exchange": exchange, "app": "app_1", "server": "crm", "tool": "send_email"}
        return found | {"approval": f"apr_{name}"}

    def started(self, epoch: int = 1) -> None:
        self.add("ledger.started", SYSTEM, {}, epoch=epoch)

    def preallowed(self, name: str, *tools: str, policy: str = DIGEST) -> None:
        subject = {member: self.subject(name)[member] for member in ("exchange", "app", "server")}
        fields = {"policy": policy, "rule": "reads", "tools": list(tools)}
        self.add("call.preallowed", SYSTEM, subject, **fields)

    def ruled(self, name: str, effect: str = "allow", **more: object) -> None:
        fields = {"effect": effect, "policy": DIGEST, "args": args()} | more
        self.add("call.ruled", SYSTEM, self.subject(name), **fields)

    def requested(self, name: str, actor: Actor = APP, **fields: object) -> None:
        fields = {"args": args(), "digest": DIGEST} | fields
        self.add("approval.requested", actor, self.subject(name), **fields)

    def reviewed(self, name: str, actor: Actor = ANN, verdict: str = "approve") -> None:
        subject = self.subject(name)
        self.add("approval.reviewed", actor, subject, verdict=verdict, digest=DIGEST)

    def decided(
        self, name: str, value: str = "approve", by: str = "reviewers", **more: object
    ) -> None:
        actor = more.pop("actor", ANN)
        fields = {"decision": {"value": value, "by": by}, "digest": DIGEST} | more
        self.add("approval.decided", actor, self.subject(name), **fields)

    def released(self, name: str, fence: int = 1, **more: object) -> None:
        self.add("release.sending", SYSTEM, self.subject(name), fence=fence, **more)

    def superseded(self, name: str) -> None:
        self.add("approval.superseded", SYSTEM, self.subject(name), code="definition_changed")

    def executed(
        self, name: str, outcome: str = "executed", fence: int = 1, **more: object
    ) -> None:
        fields = {"outcome": outcome, "match": True, "fence": fence, "args": args()} | more
        self.add("execution.observed", SYSTEM, self.subject(name), **fields)

    def whole(self, name: str) -> None:
        self.requested(name)
        self.reviewed(name)
        self.decided(name)
        self.released(name)
        self.executed(name)


def folder_of(bodies: list[bytes], **extra: bytes) -> dict[str, bytes]:
    """The files of an export with these leaves, signed with the tests' key: no database."""
    made = signer()
    frontier = tree.Frontier()
    levels: dict[int, list[bytes]] = {0: []}
    files: dict[str, bytes] = {}
    for body in bodies:
        levels[0].append(tree.leaf_hash(body))
        for (height, _), value in frontier.append(levels[0][-1]):
            levels.setdefault(height // 8, []).append(value)
        if frontier.size % 100 == 1:
            note = made.sign(frontier.size, frontier.root())
            files[f"checkpoints/{frontier.size}.note"] = note.encode()
    for level, number, width in tree.tiles(len(bodies)):
        start = number * 256
        files[tree.tile_path(level, number, width)] = b"".join(levels[level][start : start + width])
        if level == 0:
            files[tree.entries_path(number, width)] = tree.pack(bodies[start : start + width])
    note = made.sign(len(bodies), frontier.root())
    files["checkpoint"] = note.encode()
    files[f"keys/{made.verifier.id.hex()}.vkey"] = f"{made.verifier}\n".encode()
    files |= extra
    return sealed(files)


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files under a fresh manifest, as a forger would leave them."""
    kept = {path: content for path, content in files.items() if path != "manifest.json"}
    head = checkpoint.open_note(kept["checkpoint"], [signer().verifier])
    listed = {path: describe(content) for path, content in kept.items()}
    return kept | {"manifest.json": manifest(head.origin, head.size, head.root, listed)}


def write(files: dict[str, bytes], root: Path) -> Path:
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


async def opener(_: str) -> Opening | None:
    return Opening(ARGUMENTS, BLIND)
