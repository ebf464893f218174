"""What should happen to a call: rules, their conditions, rulings and risk signals.

Pure: the same policy, call and time give the same ruling, whatever the order of the rules.
Nothing here reads a file, a clock or a database.
"""

from gateway.policy.evaluation import CallFacts, Ruling, evaluate
from gateway.policy.problems import Problem
from gateway.policy.risk import RiskSignal, signals
from gateway.policy.rules import Effect, Escalation, Match, Policy, Rule, check, parse

__all__ = [
    "CallFacts",
    "Effect",
    "Escalation",
    "Match",
    "Policy",
    "Problem",
    "RiskSignal",
    "Rule",
    "Ruling",
    "check",
    "evaluate",
    "parse",
    "signals",
]
