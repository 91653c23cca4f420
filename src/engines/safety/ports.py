"""What the gates ask of the stores that know the facts.

Owns one narrow Protocol for each gate, and the facts that it answers with where no store has them; judging
them is `safety/judging.py`. An implementation may raise what its store raises: a gate that raises is a block.
None of them decides.

Reads come from definitions that are at most one second old wherever the store keeps such, so that an
evaluation costs at most two reads of a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from engines.safety.asks import Cost
from engines.scope import RequestContext
from engines.stores.firearm_rules import FirearmFacts
from engines.stores.kpis import CorridorFacts
from engines.stores.strategy_locks import LockFacts

__all__ = [
    "BudgetFacts",
    "Budgets",
    "CorridorFacts",
    "Corridors",
    "FirearmFacts",
    "Firearms",
    "LockFacts",
    "RateFacts",
    "RateLimits",
    "StrategyLocks",
]


class Firearms(Protocol):
    """Classes, licences, grants, bindings and approvals."""

    async def facts_of(
        self, context: RequestContext, action: str, subject: str, *, at_s: float
    ) -> FirearmFacts | None:
        """None where no binding names the action: then it is not dangerous."""
        ...

    async def take(
        self, context: RequestContext, action: str, subject: str, *, use_id: str, at_s: float
    ) -> FirearmFacts | None:
        """The same; where nothing stands in the way, one use is recorded, once for this `use_id`."""
        ...

    async def undo(self, context: RequestContext, action: str, subject: str, *, use_id: str) -> None:
        """Nothing came of the use, if there was one."""
        ...


class StrategyLocks(Protocol):
    """The latest view of the strategy locks."""

    async def locks_for(self, context: RequestContext) -> Sequence[LockFacts]:
        """Those whose scope covers the caller, in any status. Raises MissingRoute: no lock, no action."""
        ...


class BudgetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a cost fits. `limit_id`: the hard limit that refuses, or the soft one that is passed.

    `reservation_id`: under which the cost is held until it is settled, released or expires; None where
    nothing was to be held. `remaining`: what the tightest hard limit leaves, as decimal text.
    """

    fits: bool
    reservation_id: str | None = None
    limit_id: str | None = None
    remaining: str | None = None
    passes_soft_limit: bool = False


class Budgets(Protocol):
    """Limits, and what is reserved against them."""

    async def reserve(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> BudgetFacts:
        """Hold the cost until it is settled, released or expires; once for this id, however often asked.

        Raises MissingRoute: no budget route, no budgeted action.
        """
        ...

    async def room_for(self, context: RequestContext, cost: Cost) -> BudgetFacts:
        """The same without holding anything."""
        ...

    async def recent_room_for(self, context: RequestContext, cost: Cost) -> BudgetFacts:
        """The same by what was used and held at most a second ago."""
        ...

    async def release(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> None:
        """Let go of what was held of this cost for this id, if anything was."""
        ...


class Corridors(Protocol):
    """KPI corridors, or temperatures, of the caller's surface."""

    async def corridors_for(
        self, context: RequestContext, action: str, *, at_s: float
    ) -> Sequence[CorridorFacts]:
        """Those that hold for the action, each with its current reading."""
        ...


class RateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a limit admits one more. `limit_id`: the one that refuses."""

    admitted: bool
    limit_id: str | None = None
    retry_after_s: float | None = None


class RateLimits(Protocol):
    """Durable counters by user, surface, key and route."""

    async def take(self, context: RequestContext, action: str) -> RateFacts:
        """Take one of each quota that holds for the action. What was taken is not given back."""
        ...

    async def room_for(self, context: RequestContext, action: str) -> RateFacts:
        """The same without taking anything."""
        ...
