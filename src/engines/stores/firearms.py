"""Firearms: whether something dangerous may happen, and the record that it did.

Owns putting together what is known of an action: the classes it is bound to, the tenant's licences, the
caller's grants, cooldown, approval and strategy lock. Leaves what follows from definitions to
`stores/firearm_rules.py`, what uses leave to `stores/firearm_uses.py`, the decision to the gates.

Definitions are at most a second old. t_system's are read by the server in its own name, with the permission
to read definitions and no other, in t_system's default env and surface; no caller's identity goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from engines.clock import Clock
from engines.core import records
from engines.errors import Conflict
from engines.scope import RequestContext
from engines.stores.definition_cache import DefinitionCache
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definitions import Definitions
from engines.stores.firearm_rules import (
    Bound,
    FirearmFacts,
    Rules,
    binding_of,
    class_of,
    grant_of,
    licence_of,
    riskiest_first,
)
from engines.stores.firearm_uses import NOTHING_LEFT, FirearmUses, Standing, Using, check_classes
from engines.stores.strategy_locks import StrategyLocks

# The server's own context in t_system, for nothing but reading.
SystemContext = Callable[[], Awaitable[RequestContext]]


class Firearms:
    """What is dangerous, and for whom it is allowed. On one event loop; no permission is asked for.

    Every method raises ContextMismatch, MissingRoute, ForbiddenBackendClass, TooLarge (more definitions than
    may be in force, an action of more classes than one use may have), Throttled, Unavailable,
    BackendRefused, Corrupt.
    """

    def __init__(
        self,
        definitions: Definitions,
        uses: FirearmUses,
        locks: StrategyLocks,
        system_context: SystemContext,
        clock: Clock,
    ) -> None:
        self._uses = uses
        self._locks = locks
        self._system_context = system_context
        self._clock = clock

        def cache(name: str, compile_one: Any, names_of: Any = lambda _: ()) -> DefinitionCache[Any]:
            return DefinitionCache(definitions, SCHEMA_NAMED[name], compile_one, clock, names_of=names_of)

        self._classes = cache("firearms", class_of)
        self._bindings = cache("firearms-bindings", binding_of, lambda one: one.actions)
        self._licences = cache("firearms-licences", licence_of, lambda one: (one.class_id,))
        self._grants = cache("firearms-grants", grant_of, lambda one: (one.class_id,))

    async def facts_of(
        self, context: RequestContext, action: str, subject: str, *, at_s: float
    ) -> FirearmFacts | None:
        """What is known of the action; None where no binding names it: then it is not dangerous."""
        return (await self._look(context, action, subject, None, at_s))[0]

    async def take(
        self, context: RequestContext, action: str, subject: str, *, use_id: str, at_s: float
    ) -> FirearmFacts | None:
        """The same, and where nothing stands in the way one use is recorded, once for this `use_id`; a day
        later that is another use.

        The class cools down from `at_s` on and the approval is spent, at once and in one write; of two uses
        that meet, the second is told what stands after the first. Also raises OutcomeUnknown; asking again
        under the same `use_id` settles it.
        """
        for _ in range(records.RACES_MAX):
            facts, using, bound, standing = await self._look(context, action, subject, use_id, at_s)
            if facts is None or using is None or standing is None or not facts.allow(at_s):
                return facts
            cooldowns_s = {
                one.class_id: one.needs.cooldown_seconds
                for one in bound
                if one.needs.cooldown_seconds and not _is_own(standing, one.class_id, use_id, at_s)
            }
            asked = standing.asked
            spends = facts.needs_approval and asked is not None and not asked.is_spent_by(use_id, at_s)
            if not cooldowns_s and not spends:
                return facts
            try:
                await self._uses.record(using, standing, at_s=at_s, cooldowns_s=cooldowns_s, spends=spends)
            except Conflict:
                continue
            return facts
        raise Conflict("others use this class at once")

    async def undo(self, context: RequestContext, action: str, subject: str, *, use_id: str) -> None:
        """Nothing came of this use: the class does not cool down for it, and its approval can be used."""
        class_ids = (await self._rules(context)).class_ids(action)
        if class_ids:
            await self._uses.undo(
                Using(context=context, action=action, subject=subject, class_ids=class_ids, use_id=use_id)
            )

    async def class_of_action(self, context: RequestContext, action: str) -> str | None:
        """The riskiest class of which the action is a use; None where it is not dangerous."""
        rules = await self._rules(context)
        return rules.riskiest(rules.class_ids(action))

    async def close(self) -> None:
        """End the reads under way."""
        for cache in (self._classes, self._bindings, self._licences, self._grants):
            await cache.close()

    async def _look(
        self, context: RequestContext, action: str, subject: str, use_id: str | None, at_s: float
    ) -> tuple[FirearmFacts | None, Using | None, Sequence[Bound], Standing | None]:
        rules = await self._rules(context)
        class_ids = rules.class_ids(action)
        if not class_ids:
            return None, None, (), None
        bound = _bound(rules, class_ids, context, at_s)
        using = Using(context=context, action=action, subject=subject, class_ids=class_ids, use_id=use_id)
        standing = NOTHING_LEFT
        if any(_leaves_something(one) for one in bound):
            standing = await self._uses.standing(using)
        has_lock = False
        if any(one.needs.strategy_lock for one in bound):
            has_lock = await self._locks.in_force(context, action, at_s=at_s) is not None
        return _facts(bound, standing, use_id, has_lock=has_lock, at_s=at_s), using, bound, standing

    async def _rules(self, context: RequestContext) -> Rules:
        system = await self._system_context()
        classes, bindings = self._classes, self._bindings
        licences, grants = self._licences, self._grants
        kept: Sequence[Mapping[str, Any] | None] = (
            classes.kept(system),
            bindings.kept_named(system),
            classes.kept(context),
            bindings.kept_named(context),
            licences.kept_named(context),
            grants.kept_named(context),
        )
        found: Sequence[Any] = [one for one in kept if one is not None]
        if len(found) < len(kept):
            found = await asyncio.gather(
                classes.get(system),
                bindings.get_named(system),
                classes.get(context),
                bindings.get_named(context),
                licences.get_named(context),
                grants.get_named(context),
            )
        return Rules(
            system_classes=found[0],
            system_bindings=found[1],
            classes=found[2],
            bindings=found[3],
            licences=found[4],
            grants=found[5],
        )


def _bound(rules: Rules, class_ids: Sequence[str], context: RequestContext, at_s: float) -> Sequence[Bound]:
    """The classes of an action, the riskiest first. Raises TooLarge where no use can be recorded of so many.

    Then at the first that would have to be: the others are not looked at.
    """
    bound: list[Bound] = []
    for class_id in class_ids:
        bound.append(rules.bound(context, class_id, at_s))
        if _leaves_something(bound[-1]):
            check_classes(class_ids)
    return riskiest_first(bound)


def _leaves_something(bound: Bound) -> bool:
    return bound.needs.human_approval or bound.needs.cooldown_seconds > 0


def _facts(
    bound: Sequence[Bound], standing: Standing, use_id: str | None, *, has_lock: bool, at_s: float
) -> FirearmFacts:
    """What the classes ask for together, under the riskiest one's name."""
    riskiest, asked = bound[0], standing.asked
    until = [
        standing.last[one.class_id].at_s + one.needs.cooldown_seconds
        for one in bound
        if one.class_id in standing.last and not _is_own(standing, one.class_id, use_id, at_s)
    ]
    cooling = [one for one in until if one > at_s]
    return FirearmFacts(
        class_id=riskiest.class_id,
        risk_level=riskiest.needs.risk_level,
        licensed=all(one.licensed for one in bound),
        granted=all(one.granted for one in bound),
        needs_approval=any(one.needs.human_approval for one in bound),
        approval="none" if asked is None else asked.fact(riskiest.class_id, use_id, at_s),
        approval_id=None if asked is None else asked.approval_id,
        cooldown_until_s=max(cooling, default=None),
        needs_strategy_lock=any(one.needs.strategy_lock for one in bound),
        has_strategy_lock=has_lock,
    )


def _is_own(standing: Standing, class_id: str, use_id: str | None, at_s: float) -> bool:
    """Whether the last use of the class is this one."""
    last = standing.last.get(class_id)
    return last is not None and last.is_of(use_id, at_s)
