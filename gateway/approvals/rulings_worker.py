"""The process in which conditions are evaluated whose cost nobody can know beforehand.

One line of JSON in, one out; it ends with its input. It is given no secret, may not take much
memory, and says only which rules match: what follows from that is not decided here.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import OrderedDict
from datetime import datetime
from typing import Any

from gateway.policy import CallFacts, Policy, matching, parse, signals

_MOST_MEMORY = 2 << 30
_MOST_POLICIES = 8
READY = "ready\n"


def main() -> None:
    """Answer until there is nothing left to read."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    policies: OrderedDict[str, Policy] = OrderedDict()
    sys.stdout.write(READY)
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(policies, json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(policies: OrderedDict[str, Policy], asked: dict[str, Any]) -> dict[str, Any]:
    digest = asked["policy"]
    if "rules" in asked:
        policies[digest] = parse(asked["rules"])
    if digest not in policies:
        return {"unknown": digest}
    policies.move_to_end(digest)
    while len(policies) > _MOST_POLICIES:
        policies.popitem(last=False)
    call = CallFacts(**asked["call"])
    hits = matching(policies[digest], call, datetime.fromisoformat(asked["now"]))
    return {
        "hits": [[hit.name, hit.unevaluated] for hit in hits],
        "signals": [[signal.code, signal.sentence] for signal in signals(call)],
    }


if __name__ == "__main__":
    main()
