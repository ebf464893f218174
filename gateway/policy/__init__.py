"""What should happen to a call: rules, their conditions, rulings and risk signals.

Pure: the same policy, call and time give the same ruling, whatever the order of the rules.
Nothing here reads a file, a clock or a database.
"""

from gateway.policy.comparing import ChangedMember, ChangedRule, Comparison, compare, sentence
from gateway.policy.evaluation import (
    CallFacts,
    Hit,
    Ruling,
    always_allows,
    combine,
    evaluate,
    is_light,
    matching,
    unevaluated,
)
from gateway.policy.problems import Problem
from gateway.policy.risk import RiskSignal, signals
from gateway.policy.rules import Effect, Escalation, Match, Policy, Rule, check, parse

__all__ = [
    "CallFacts",
    "ChangedMember",
    "ChangedRule",
    "Comparison",
    "Effect",
    "Escalation",
    "Hit",
    "Match",
    "Policy",
    "Problem",
    "RiskSignal",
    "Rule",
    "Ruling",
    "always_allows",
    "check",
    "combine",
    "compare",
    "evaluate",
    "is_light",
    "matching",
    "parse",
    "sentence",
    "signals",
    "unevaluated",
]
