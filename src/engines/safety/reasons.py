"""Reason codes: why an action may happen or not, as a closed list.

Owns the codes and what each means; the documentation is made from this table. A code that stands in events
and answers stays what it is: a new reason gets a new code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

import msgspec

ReasonCode = Literal[
    "passed",
    "kill_switch_engaged",
    "unlicensed",
    "not_granted",
    "approval_required",
    "approval_pending",
    "approval_refused",
    "cooling_down",
    "no_strategy_lock",
    "strategy_lock_not_approved",
    "strategy_lock_not_in_force",
    "action_not_in_strategy_lock",
    "review_missing",
    "review_rejected",
    "cost_not_told",
    "budget_exceeded",
    "below_floor",
    "above_ceiling",
    "no_reading",
    "rate_limited",
    "no_rule",
    "gate_not_mounted",
    "gate_timeout",
    "gate_error",
    "missing_route",
]


class Reason(msgspec.Struct, frozen=True):
    """`gates`: those that give this reason. `meaning`: one sentence for whoever was refused."""

    gates: tuple[str, ...]
    meaning: str


_EVERY: Final = ("every gate",)

REASONS: Final[Mapping[ReasonCode, Reason]] = {
    "passed": Reason(_EVERY, "no gate that guards the action refuses it"),
    "kill_switch_engaged": Reason(
        ("kill_switch",), "somebody switched off everything, this surface or this action"
    ),
    "unlicensed": Reason(
        ("firearms",), "the action belongs to a dangerous class for which the tenant has no licence in force"
    ),
    "not_granted": Reason(
        ("firearms",), "the tenant is licensed, and the caller has no grant of the class in force"
    ),
    "approval_required": Reason(("firearms",), "a person must approve the action, and nobody was asked yet"),
    "approval_pending": Reason(
        ("firearms",), "a person was asked to approve the action and has not answered"
    ),
    "approval_refused": Reason(("firearms",), "a person was asked to approve the action and refused"),
    "cooling_down": Reason(
        ("firearms",), "the class was used too recently; `retry_after_s` says for how long"
    ),
    "no_strategy_lock": Reason(
        ("firearms", "strategy_lock", "three_wise"), "no strategy lock covers the caller's scope"
    ),
    "strategy_lock_not_approved": Reason(("strategy_lock",), "the strategy lock is a draft, or was rejected"),
    "strategy_lock_not_in_force": Reason(
        ("strategy_lock",), "the strategy lock is approved, and its window has not begun or is over"
    ),
    "action_not_in_strategy_lock": Reason(
        ("strategy_lock",), "a strategy lock is in force, and the action is none of those it allows"
    ),
    "review_missing": Reason(("three_wise",), "the strategy lock in force was not reviewed yet"),
    "review_rejected": Reason(("three_wise",), "the review of the strategy lock in force rejected it"),
    "cost_not_told": Reason(
        ("budget", "budget_room"), "the action is budgeted, and the request does not say what it costs"
    ),
    "budget_exceeded": Reason(
        ("budget", "budget_room"), "the cost does not fit into what a hard limit leaves"
    ),
    "below_floor": Reason(("kpi_corridor", "temperature"), "the reading is below its floor"),
    "above_ceiling": Reason(("kpi_corridor", "temperature"), "the reading is above its ceiling"),
    "no_reading": Reason(
        ("kpi_corridor", "temperature"), "there is no reading, and the corridor does not pass without one"
    ),
    "rate_limited": Reason(("rate_limit",), "a rate limit is used up; `retry_after_s` says until when"),
    "no_rule": Reason(("config",), "no rule names the action, and the surface's configuration refuses such"),
    "gate_not_mounted": Reason(_EVERY, "the configuration names a gate that this server does not have"),
    "gate_timeout": Reason(_EVERY, "the gate did not answer in time"),
    "gate_error": Reason(_EVERY, "the gate failed; `details.error` is the code of its error"),
    "missing_route": Reason(_EVERY, "the gate's store has no route; an operator adds it"),
}
assert set(REASONS) == set(get_args(ReasonCode)), "one meaning for each code"
