"""Rulings that make nobody else wait: what may take long is evaluated in a process of its own.

The library for conditions holds the interpreter's lock while it works, so that a thread would
stop the event loop as well. What does not come back in time cannot be evaluated: such a condition
counts for `hold` and `deny`, and not for `allow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import IO, Any

from gateway.approvals.rulings_worker import READY
from gateway.policy import (
    CallFacts,
    Hit,
    Policy,
    RiskSignal,
    Ruling,
    combine,
    evaluate,
    is_light,
    signals,
    unevaluated,
)
from gateway.telemetry import log

_TOO_LONG = "it took too long"
#: Shown when nobody could look at the arguments in time.
UNEXAMINED = RiskSignal("unexamined", "The arguments could not be examined in time.")


@dataclass(frozen=True)
class Assessment:
    """What policy says about a call, and where a reviewer should look."""

    ruling: Ruling
    signals: tuple[RiskSignal, ...]


class _Gone(Exception):
    """The process ended, or answered something that cannot be understood."""


class Rulings:
    """Rules on calls. The process is started when it is needed first; `close` ends it.

    One call at a time is with it, for `limit` seconds at most.
    """

    def __init__(self, limit: float = 2.0) -> None:
        self.limit = limit
        self._process: subprocess.Popen[str] | None = None
        self._thread = ThreadPoolExecutor(1, "rulings")

    async def assess(self, policy: Policy, call: CallFacts, now: datetime) -> Assessment:
        """Rule on `call`, and say what stands out; never raises for anything in the call."""
        if is_light(policy, call):
            return Assessment(evaluate(policy, call, now), signals(call))
        return await self._assess_there(policy, call, now)

    async def rule(self, policy: Policy, call: CallFacts, now: datetime) -> Ruling:
        """Rule on `call`, and no more."""
        if is_light(policy, call):
            return evaluate(policy, call, now)
        return (await self._assess_there(policy, call, now)).ruling

    async def _assess_there(self, policy: Policy, call: CallFacts, now: datetime) -> Assessment:
        asked = {"policy": policy.digest, "call": asdict(call), "now": now.isoformat()}
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._thread, self._ask, asked, policy)
            return _assessment(policy, answer)
        except (_Gone, OSError, ValueError, LookupError, TypeError) as error:
            # The process has been ended, or says something that it cannot say.
            log.warning("ruling.not_evaluated", why=type(error).__name__)
            hits = unevaluated(policy, call, _TOO_LONG)
            return Assessment(combine(hits), (UNEXAMINED,))

    def close(self) -> None:
        """End the process; another one is started should it be needed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in _pipes(process):
            with contextlib.suppress(OSError):
                pipe.close()

    # --- in a thread ------------------------------------------------------------------------

    def _ask(self, asked: dict[str, Any], policy: Policy) -> dict[str, Any]:
        answer = self._exchange(asked)
        if "unknown" in answer:
            answer = self._exchange({**asked, "rules": policy.documents()})
        return answer

    def _exchange(self, asked: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        to, from_ = _pipes(process)
        too_late = threading.Timer(self.limit, process.kill)
        too_late.start()
        try:
            to.write(json.dumps(asked) + "\n")
            to.flush()
            answer = json.loads(from_.readline() or "null")
        except (OSError, ValueError):
            answer = None
        finally:
            too_late.cancel()
        if not isinstance(answer, dict):
            self.close()
            raise _Gone
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self.close()
        # Nothing of our environment but where modules are: it holds secrets.
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "gateway.approvals.rulings_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        if _pipes(process)[1].readline() != READY:
            self.close()
            raise _Gone
        return process


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise _Gone
    return process.stdin, process.stdout


def _assessment(policy: Policy, answer: dict[str, Any]) -> Assessment:
    rules = {rule.name: rule for rule in policy.rules}
    hits = [Hit(rules[name], why) for name, why in answer["hits"]]
    found = tuple(RiskSignal(code, sentence) for code, sentence in answer["signals"])
    return Assessment(combine(hits), found)
