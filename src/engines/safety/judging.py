"""Judging: from facts to a verdict, as pure functions, one a gate.

Owns every rule by which an action is refused, and nothing else: no store, no clock, no I/O. What a gate was
told stands in the verdict's inputs, so that a decision can be explained by running its function again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engines.control.records import GateConfig, GateRule, KillSwitch, Switch
from engines.safety.asks import Cost, Verdict
from engines.safety.ports import BudgetFacts, CorridorFacts, FirearmFacts, LockFacts, RateFacts
from engines.safety.reasons import ReasonCode
from engines.stores.strategy_locks import covers

_ANY: Final = "*"


def rule_for(config: GateConfig | None, action: str) -> GateRule | None:
    """The most specific rule that names the action: an exact name, else the longest beginning.

    Their order says nothing, so that a wide rule never hides the narrow one behind it.
    """
    if config is None:
        return None
    naming = (rule for rule in config.rules if covers(rule.action, action))
    return max(naming, key=lambda rule: (not rule.action.endswith(_ANY), len(rule.action)), default=None)


def judge_kill_switch(switches: Iterable[KillSwitch], *, surface_id: str, action: str) -> Verdict:
    """Refused where anybody who may switched off everything, the surface, or the action."""
    switches = tuple(switches)
    inputs = {
        "surface_id": surface_id,
        "action": action,
        "looked_at": [f"{switch.holder_id} for {switch.tenant_id}" for switch in switches],
    }
    for switch in switches:
        off = _off(switch, surface_id, action)
        if off is not None:
            return _block("kill_switch_engaged", {"held_by": switch.holder_id, **off}, inputs)
    return _pass(inputs=inputs)


def _off(switch: KillSwitch, surface_id: str, action: str) -> dict[str, Any] | None:
    if switch.engaged:
        return {"off": "everything"} | ({} if switch.reason is None else {"reason": switch.reason})
    for part in switch.switches:
        if part.surface_id in (None, surface_id) and (part.action is None or covers(part.action, action)):
            return {"off": "part", **_said(part)}
    return None


def _said(part: Switch) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(part)
    return said


def judge_firearm(facts: FirearmFacts | None, *, at_s: float) -> Verdict:
    """Licence, grant, cooldown, strategy lock, approval: in this order, so that nobody is asked in vain."""
    if facts is None:
        return _pass(inputs={"bound": False})
    inputs = {"bound": True, **msgspec.structs.asdict(facts)}
    details: dict[str, Any] = {"class_id": facts.class_id, "risk_level": facts.risk_level}
    refusal = _firearm_refusal(facts, at_s)
    if refusal is None:
        return _pass(details, inputs)
    if refusal == "cooling_down" and facts.cooldown_until_s is not None:
        details["retry_after_s"] = round(facts.cooldown_until_s - at_s, 3)
    if refusal.startswith("approval") and facts.approval_id is not None:
        details["approval_id"] = facts.approval_id
    return _block(refusal, details, inputs)


def _firearm_refusal(facts: FirearmFacts, at_s: float) -> ReasonCode | None:
    if not facts.licensed:
        return "unlicensed"
    if not facts.granted:
        return "not_granted"
    if facts.cooldown_until_s is not None and at_s < facts.cooldown_until_s:
        return "cooling_down"
    if facts.needs_strategy_lock and not facts.has_strategy_lock:
        return "no_strategy_lock"
    if facts.needs_approval and facts.approval != "granted":
        return _APPROVALS[facts.approval]
    return None


_APPROVALS: Final[Mapping[str, ReasonCode]] = {
    "none": "approval_required",
    "pending": "approval_pending",
    "refused": "approval_refused",
}


def judge_strategy_lock(locks: Sequence[LockFacts], *, action: str, at_s: float) -> Verdict:
    """Some lock must be approved, in its window, and allow the action. Else the nearest miss is told."""
    inputs = {"locks": locks}
    in_force = locks_in_force(locks, at_s)
    for lock in in_force:
        if any(covers(pattern, action) for pattern in lock.actions):
            return _pass(_lock_details(lock), inputs)
    if in_force:
        return _block("action_not_in_strategy_lock", _lock_details(in_force[0]), inputs)
    approved = [lock for lock in locks if lock.status in ("approved", "expired")]
    if approved:
        return _block("strategy_lock_not_in_force", _lock_details(approved[0]), inputs)
    if locks:
        return _block("strategy_lock_not_approved", _lock_details(locks[0]), inputs)
    return _block("no_strategy_lock", {}, inputs)


def judge_three_wise(locks: Sequence[LockFacts], *, action: str, at_s: float) -> Verdict:
    """Of the locks in force that allow the action, one must have passed its review."""
    inputs = {"locks": locks}
    allowing = [
        lock
        for lock in locks_in_force(locks, at_s)
        if any(covers(pattern, action) for pattern in lock.actions)
    ]
    for lock in allowing:
        if lock.review == "approved":
            return _pass(_lock_details(lock), inputs)
    for lock in allowing:
        if lock.review == "rejected":
            return _block("review_rejected", _lock_details(lock), inputs)
    if allowing:
        return _block("review_missing", _lock_details(allowing[0]), inputs)
    return _block("no_strategy_lock", {}, inputs)


def locks_in_force(locks: Sequence[LockFacts], at_s: float) -> list[LockFacts]:
    """Approved, and within their window: from its first instant on, up to its last and not at it."""
    return [
        lock
        for lock in locks
        if lock.status == "approved"
        and (lock.valid_from_s is None or lock.valid_from_s <= at_s)
        and (lock.valid_until_s is None or at_s < lock.valid_until_s)
    ]


def _lock_details(lock: LockFacts) -> dict[str, Any]:
    return {"lock_id": lock.lock_id, "version": lock.version}


def judge_budget(facts: BudgetFacts | None, cost: Cost | None) -> Verdict:
    """`facts` None: the request does not say what the action costs, and the store was not asked."""
    if facts is None or cost is None:
        return _block("cost_not_told", {}, {})
    inputs = {"cost": cost, **msgspec.structs.asdict(facts)}
    details: dict[str, Any] = {}
    if facts.reservation_id is not None:
        details["reservation_id"] = facts.reservation_id
    if facts.limit_id is not None:
        details["limit_id"] = facts.limit_id
    if facts.passes_soft_limit:
        details["passes_soft_limit"] = True
    if facts.fits:
        return _pass(details, inputs)
    return _block("budget_exceeded", details, inputs)


def judge_corridors(corridors: Sequence[CorridorFacts]) -> Verdict:
    """Every reading keeps its bounds; the bounds themselves are within."""
    inputs = {"corridors": corridors}
    for corridor in corridors:
        refusal = _corridor_refusal(corridor)
        if refusal is not None:
            details = {
                "name": corridor.name,
                "reading": corridor.reading,
                "floor": corridor.floor,
                "ceiling": corridor.ceiling,
            }
            return _block(refusal, details, inputs)
    return _pass(inputs=inputs)


def _corridor_refusal(corridor: CorridorFacts) -> ReasonCode | None:
    if corridor.reading is None:
        return None if corridor.passes_unread else "no_reading"
    # Written so that a reading that is no number (NaN) keeps no bound.
    if corridor.floor is not None and not corridor.reading >= corridor.floor:
        return "below_floor"
    if corridor.ceiling is not None and not corridor.reading <= corridor.ceiling:
        return "above_ceiling"
    return None


def judge_rate(facts: RateFacts) -> Verdict:
    """Refused where a quota is used up."""
    inputs = msgspec.structs.asdict(facts)
    if facts.admitted:
        return _pass(inputs=inputs)
    details = {"limit_id": facts.limit_id, "retry_after_s": facts.retry_after_s}
    return _block(
        "rate_limited", {name: value for name, value in details.items() if value is not None}, inputs
    )


def _pass(details: Mapping[str, Any] | None = None, inputs: Mapping[str, Any] | None = None) -> Verdict:
    return Verdict(result="pass", details=details or {}, inputs=inputs or {})


def _block(reason_code: ReasonCode, details: Mapping[str, Any], inputs: Mapping[str, Any]) -> Verdict:
    return Verdict(result="block", reason_code=reason_code, details=details, inputs=inputs)
