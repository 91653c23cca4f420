"""The gates: each asks its port for the facts and has them judged.

Owns what a gate is, and all of them but for their rules. Leaves the rules to `safety/judging.py`, the
facts to the stores behind `safety/ports.py`, order and failures to `safety/chain.py`.

A gate that consumes takes something of what it judges (a reservation, a unit of a quota); it is asked only
once every gate before it has passed, and never takes anything in a dry run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeGuard

from engines.control.records import GateName, KillSwitch
from engines.safety.asks import Ask, Verdict
from engines.safety.judging import (
    judge_budget,
    judge_corridors,
    judge_firearm,
    judge_kill_switch,
    judge_rate,
    judge_strategy_lock,
    judge_three_wise,
)
from engines.safety.ports import Budgets, Corridors, Firearms, RateLimits, StrategyLocks

# No store's gate, but the configuration's own: it refuses what no rule names.
CONFIG: Final = "config"


class Gate(Protocol):
    """Says whether an action may happen."""

    name: str

    async def judge(self, ask: Ask, /) -> Verdict:
        """The gate's verdict. Whatever it raises is a block; so is taking longer than the chain allows."""
        ...


class ConsumingGate(Gate, Protocol):
    """One whose `pass` has taken something."""

    async def undo(self, ask: Ask, /) -> None:
        """Give back what was taken under `ask.evaluation_id`, if anything was and it can be given back."""
        ...


def consumes(gate: Gate) -> TypeGuard[ConsumingGate]:
    """Whether the gate takes something of what it judges."""
    return hasattr(gate, "undo")


class KillSwitchGate(Gate):
    """Nothing that is switched off happens. Judged by what this process follows: no backend is asked."""

    name = "kill_switch"

    def __init__(self, switches: Iterable[KillSwitch]) -> None:
        self._switches = switches

    async def judge(self, ask: Ask) -> Verdict:
        return judge_kill_switch(self._switches, surface_id=ask.context.surface_id, action=ask.action)


class FirearmsGate(ConsumingGate):
    """A dangerous action happens under a licence, a grant, and whatever else its class asks for.

    One that passes is a use: its class cools down, and its approval is spent.
    """

    name = "firearms"

    def __init__(self, firearms: Firearms) -> None:
        self._firearms = firearms

    async def judge(self, ask: Ask) -> Verdict:
        if ask.dry_run:
            facts = await self._firearms.facts_of(ask.context, ask.action, ask.subject, at_s=ask.at_s)
        else:
            facts = await self._firearms.take(
                ask.context, ask.action, ask.subject, use_id=ask.evaluation_id, at_s=ask.at_s
            )
        return judge_firearm(facts, at_s=ask.at_s)

    async def undo(self, ask: Ask) -> None:
        await self._firearms.undo(ask.context, ask.action, ask.subject, use_id=ask.evaluation_id)


class StrategyLockGate(Gate):
    """An action happens within a strategy that somebody approved."""

    name = "strategy_lock"

    def __init__(self, locks: StrategyLocks) -> None:
        self._locks = locks

    async def judge(self, ask: Ask) -> Verdict:
        locks = await self._locks.locks_for(ask.context)
        return judge_strategy_lock(locks, action=ask.action, at_s=ask.at_s)


class ThreeWiseGate(Gate):
    """The strategy that allows an action passed its review."""

    name = "three_wise"

    def __init__(self, locks: StrategyLocks) -> None:
        self._locks = locks

    async def judge(self, ask: Ask) -> Verdict:
        locks = await self._locks.locks_for(ask.context)
        return judge_three_wise(locks, action=ask.action, at_s=ask.at_s)


class BudgetGate(ConsumingGate):
    """What an action costs fits into its budget, and is reserved there."""

    name = "budget"

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def judge(self, ask: Ask) -> Verdict:
        if ask.cost is None:
            return judge_budget(None, None)
        if ask.dry_run:
            facts = await self._budgets.room_for(ask.context, ask.cost)
        else:
            facts = await self._budgets.reserve(ask.context, ask.cost, evaluation_id=ask.evaluation_id)
        return judge_budget(facts, ask.cost)

    async def undo(self, ask: Ask) -> None:
        if ask.cost is not None:
            await self._budgets.release(ask.context, ask.cost, evaluation_id=ask.evaluation_id)


class BudgetRoomGate(Gate):
    """What an action costs fitted into its budget a moment ago; nothing is held for it.

    For actions whose use is recorded afterwards: those who ask within one second may together pass a limit.
    """

    name = "budget_room"

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def judge(self, ask: Ask) -> Verdict:
        if ask.cost is None:
            return judge_budget(None, None)
        return judge_budget(await self._budgets.recent_room_for(ask.context, ask.cost), ask.cost)


class CorridorGate(Gate):
    """Readings keep within their bounds: of KPIs (`kpi_corridor`), or of a surface (`temperature`)."""

    def __init__(self, name: GateName, corridors: Corridors) -> None:
        self.name = name
        self._corridors = corridors

    async def judge(self, ask: Ask) -> Verdict:
        found = await self._corridors.corridors_for(ask.context, ask.action, at_s=ask.at_s)
        return judge_corridors(found)


class RateLimitGate(ConsumingGate):
    """No more actions than a quota admits. What an action took stays taken, whatever becomes of it."""

    name = "rate_limit"

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits

    async def judge(self, ask: Ask) -> Verdict:
        ask_limits = self._limits.room_for if ask.dry_run else self._limits.take
        return judge_rate(await ask_limits(ask.context, ask.action))

    async def undo(self, _: Ask) -> None:
        """Nothing is given back: processes may admit too few, never too many."""


class Refusing(Gate):
    """Refuses whatever it is asked: what no rule names, or what a gate guards that is not mounted here."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        self.name = name
        self._verdict = verdict

    async def judge(self, _: Ask) -> Verdict:
        return self._verdict
