"""Which clients are run against the gateway, what each is asked to do, and in which modes.

The one list behind the environments, the tests and docs/compatibility.md: a capability or a client
that is added here is run, and appears in the table. Nothing is started here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.repository import ROOT

PROGRAMS = ROOT / "tests" / "clients" / "programs"
RESULTS = ROOT / "tests" / "clients" / "results.json"
ENVIRONMENTS = ROOT / ".venv" / "clients"


@dataclass(frozen=True)
class Client:
    """One client in one version. `name` is also that of its environment."""

    name: str
    title: str
    family: str
    program: str

    @property
    def environment(self) -> Path:
        """Where its packages are installed."""
        return ENVIRONMENTS / self.name

    @property
    def lock(self) -> Path | None:
        """The pinned set behind the environment; None when the machine's own program is run."""
        match self.family:
            case "curl":
                return None
            case "node" | "ai":
                return ROOT / "tests" / "clients" / self.name / "package-lock.json"
            case _:
                return ROOT / "requirements" / "clients" / f"{self.name}.lock"


CLIENTS = (
    Client("openai-1", "openai 1.109 (Python)", "python", "openai_python.py"),
    Client("openai-2", "openai 2.9 (Python)", "python", "openai_python.py"),
    Client("openai-3", "openai 3.54 (Python)", "python", "openai_python.py"),
    Client("node-6", "openai 6.9 (Node)", "node", "openai_node.mjs"),
    Client("node-7", "openai 7.57 (Node)", "node", "openai_node.mjs"),
    Client("agents", "openai-agents 0.24", "agents", "agents_python.py"),
    Client("node-ai", "AI SDK 6, Azure", "ai", "ai_sdk.mjs"),
    Client("curl", "curl", "curl", "curl.py"),
)
#: No client, but installed like one: the identity provider that browser tests sign in with.
PROVIDER = Client("oidc-provider", "oidc-provider 9 (Node)", "node", "identity_provider.mjs")


@dataclass(frozen=True)
class Capability:
    """Something an app does, by family of client in these modes.

    `only` narrows it to some clients; `breaks` names (client, mode) where the client itself gives
    up on what Azure may send, and the gateway may not hide it.
    """

    name: str
    title: str
    modes: dict[str, tuple[str, ...]]
    only: tuple[str, ...] = ()
    breaks: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One client doing one thing in one mode. `name` is what its program is told."""

    client: Client
    capability: Capability
    mode: str
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.client.name}/{self.capability.name}:{self.mode}")

    @property
    def breaks(self) -> bool:
        """Whether the client is known not to survive this."""
        return (self.client.name, self.mode) in self.capability.breaks


_STREAMS = ("stream", "helper")
_OFFICIAL = ("plain", *_STREAMS)
_PYTHON = (*_OFFICIAL, "plain-async", "stream-async", "helper-async")
_BOTH = ("plain", "stream")
_EVERYWHERE = {"node": _OFFICIAL, "agents": _BOTH, "ai": _BOTH, "curl": _BOTH}
_PLAIN = {"python": ("plain",), "node": ("plain",), "curl": ("plain",)}
_PLAIN_EVERYWHERE = {**_PLAIN, "agents": ("plain",), "ai": ("plain",)}
_REFUSALS = ("400", "401", "403", "404", "424", "500", "502", "503", "vault")
_AZURE = ("key", "token", "endpoint", "deployment")

CAPABILITIES = (
    Capability("text", "Text", {"python": _PYTHON, **_EVERYWHERE}),
    Capability("approved", "Held call, approved", {"python": _PYTHON, **_EVERYWHERE}),
    Capability("denied", "Held call, denied", {"python": _PYTHON, **_EVERYWHERE}),
    Capability(
        "credential",
        "MCP `headers` of the app",
        _PLAIN_EVERYWHERE,
        note="Those of the vault go to Azure instead.",
    ),
    Capability("wait", "Decision after 20 s", {"python": _OFFICIAL, **_EVERYWHERE}),
    Capability(
        "azure",
        "`AzureOpenAI`",
        {"python": _AZURE, "node": _AZURE},
        note="`key` and `token`: base URL `…/openai/v1/`; `endpoint`: the address alone; "
        "`deployment`: `…/openai/deployments/NAME`.",
    ),
    Capability("function", "Function calling", _PLAIN_EVERYWHERE),
    Capability("image", "Image input, URL and base64", _PLAIN_EVERYWHERE),
    Capability(
        "drawing",
        "Image generation, with partial images where it is streamed",
        {"python": _BOTH, "node": _BOTH, "agents": _BOTH, "ai": ("plain",), "curl": _BOTH},
        note="The header `x-ms-oai-image-generation-deployment` is passed on to Azure.",
    ),
    Capability("computer", "Computer use, a held call beside it", _PLAIN),
    Capability("chain", "Chaining by id, and by sending everything again", _PLAIN_EVERYWHERE),
    Capability("reasoning", "Encrypted reasoning, nothing stored", _PLAIN),
    Capability("stored", "Retrieve, list the input, delete", _PLAIN),
    Capability(
        "conversation", "Conversations, a call held in one", {**_PLAIN, "agents": ("plain",)}
    ),
    Capability(
        "wish",
        "Continued by the app itself (`Gatepass-Wait: return`)",
        _PLAIN,
        only=("openai-3", "node-7", "curl"),
        note="What the app answers to the request is a wish; what a person decided is sent.",
    ),
    Capability("background", "Background: polled", _PLAIN),
    Capability("cancel", "Background: cancelled while it is held", _PLAIN),
    Capability(
        "resume",
        "Background: stream left and taken up again",
        {"python": _STREAMS, "node": _STREAMS, "curl": ("stream",)},
    ),
    Capability("files", "Files: upload, list, read, use, delete", _PLAIN),
    Capability("chat", "Chat completions", {"python": _BOTH, **_EVERYWHERE, "node": _BOTH}),
    Capability("embeddings", "Embeddings", {**_PLAIN, "ai": ("plain",)}),
    Capability("models", "Models", _PLAIN),
    Capability(
        "unknown",
        "An event nobody knows",
        {"python": _STREAMS, "node": _STREAMS, "agents": ("stream",), "ai": ("stream",)},
        breaks=(("node-7", "helper"),),
        note="Sent by Azure and passed on; ✖ is where the client's own helper gives up.",
    ),
    Capability(
        "runner",
        "Responses tool runner",
        {"python": _BOTH},
        only=("openai-3",),
        note="The app must declare `require_approval: never`, and the gateway asks all the same.",
    ),
    Capability(
        "retry",
        "Timer shorter than the decision",
        {"python": ("plain",), "node": ("plain",), "agents": ("plain",), "ai": ("plain",)},
        note="The client gives up waiting and asks again by itself; people are asked once.",
    ),
    Capability(
        "refusal",
        "Refusals and failures",
        {"python": _REFUSALS, "node": _REFUSALS, "agents": _REFUSALS, "ai": _REFUSALS},
        note="The status, or `vault` for a credential that cannot be opened (503, nothing sent). "
        "The app gets the error with its code. A client repeats it only where that is harmless, "
        "the AI SDK excepted: see below.",
    ),
)


def cases() -> Iterator[Case]:
    """Everything that is run."""
    for client in CLIENTS:
        for capability in CAPABILITIES:
            if capability.only and client.name not in capability.only:
                continue
            for mode in capability.modes.get(client.family, ()):
                yield Case(client, capability, mode)


def cases_of(*names: str) -> list[Case]:
    """Those of some capabilities."""
    return [case for case in cases() if case.capability.name in names]
