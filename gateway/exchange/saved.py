"""Reads what an exchange was saved as, also by earlier versions of this program. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.exchange import resume
from gateway.exchange.messages import Answer, Binding, Call, Carried, Plan


def second_version(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first version kept the app's own input in front, and only for stateless chains."""
    own = resume.as_items(state["plan"]["body"].get("input"))
    return {**state, "version": 2, "transcript": state["context"][len(own) :]}


def plan(state: Mapping[str, Any]) -> Plan:
    """The plan that was saved."""
    return Plan(
        **{
            **state,
            "bindings": tuple(Binding(**binding) for binding in state["bindings"]),
            "carried": tuple(
                Carried(Call(**carried["call"]), answer(carried["answer"]))
                for carried in state["carried"]
            ),
        }
    )


def answer(state: Mapping[str, Any] | None) -> Answer | None:
    """The answer that was saved."""
    return None if state is None else Answer(**state)
