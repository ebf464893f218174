"""What one run works on: the request as understood, and the response it is filling in.

Data only. `exchange` makes a job, `run` and `calls` carry it out, `answering` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.demo import events
from gateway.demo.choice import Situation
from gateway.demo.context import Given
from gateway.demo.framing import Framing
from gateway.demo.mcp_tools import McpServer
from gateway.demo.model import Directive, Script
from gateway.demo.service import UpstreamSettings
from gateway.demo.store import Conversation
from gateway.demo.wire import JSON


@dataclass(frozen=True)
class Job:
    """All that one run needs. `response` is filled in as the run proceeds; `faults` by name."""

    body: JSON
    given: Given
    response: JSON
    servers: Mapping[str, McpServer]
    script: Script
    settings: UpstreamSettings
    faults: Mapping[str, Directive]
    conversation: Conversation | None = None

    def join_conversation(self) -> None:
        """What was asked and answered becomes part of the conversation; called when completed."""
        if self.conversation is not None:
            self.conversation.items.extend([*self.given.new, *self.response["output"]])

    @property
    def fails_whole_request(self) -> bool:
        """Whether a server that cannot be listed ends the response."""
        if {"list-error", "list-item"} & set(self.faults):
            return "list-error" in self.faults
        return self.settings.list_failures == "request"

    @property
    def framing(self) -> Framing:
        """How a stream of this response is written."""
        options = self.body.get("stream_options") or {}
        return Framing(
            crlf=self.quirk("sse-crlf"),
            tiny=self.quirk("tiny-chunks"),
            named=not self.quirk("no-event-lines"),
            done_marker=self.quirk("done-marker"),
            flat_errors=self.quirk("flat-error"),
            obfuscated=options.get("include_obfuscation") is not False,
        )

    def quirk(self, name: str) -> bool:
        return self.script.has_quirk(name, resume=self.given.is_resume)


@dataclass
class Run:
    """A job on its way: the numbering of its events and the tool lists it has by now."""

    job: Job
    numbers: events.Numbering
    lists: dict[str, list[JSON]] = field(default_factory=dict)

    @property
    def output(self) -> list[JSON]:
        output: list[JSON] = self.job.response["output"]
        return output

    @property
    def situation(self) -> Situation:
        """What the model sees now: the input and what this response has produced so far."""
        job, context = self.job, [*self.job.given.context, *self.output]
        return Situation(job.script, job.body, context, self.output, job.servers, self.lists)

    def open(self, item: JSON) -> int:
        """Append an item to the output; its index."""
        self.output.append(item)
        return len(self.output) - 1
