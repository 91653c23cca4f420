"""Feature flags in force: definitions read a moment ago, evaluated in a context.

Owns which definitions a request evaluates (those of its tenant, env and surface), how old they may be, and
the bounds on what is kept of them. Leaves storing flags to `stores/definitions.py` and what one says to
`stores/flag_rules.py`.

Every answer rests on definitions that were read at most a second before. Past that a flag is read again, once
however many ask; where that fails the answer is the error. Between two reads neither the backend nor the
route is asked: a change of either is seen within the same second in which the router adopts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET

from engines.clock import Clock
from engines.codec import encode_json
from engines.core.listing import LIMIT_MAX, Window
from engines.core.slots import Slots
from engines.errors import EnginesError, NotFound, TooLarge
from engines.scope import RequestContext, check_id
from engines.stores.definition_records import Definition
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definitions import Definitions
from engines.stores.flag_rules import Allowance, Evaluation, Flag, FlagDefinition, check_context, failure
from engines.stores.fresh import Fresh
from engines.stores.json_logic import RULE_PARTS_MAX

AGE_MAX_S: Final = 1.0
# Of one surface, in one bulk evaluation. Flags are evaluated one by one however many there are.
FLAGS_MAX: Final = 1_000
SET_BYTES_MAX: Final = 8 * 1024 * 1024
FLAGS_KEPT_MAX: Final = 10_000
SETS_KEPT_MAX: Final = 1_000
# Of the definitions' JSON; compiled they take several times as much.
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
# What a flag weighs beside its JSON.
_FLAG_BYTES: Final = 1_024
# Of one bulk evaluation. Every flag that there may be can walk once through the longest list that a rule may
# hold, and only what is made to be slow takes more.
BULK_STEPS_MAX: Final = FLAGS_MAX * RULE_PARTS_MAX
# So long a bulk evaluation keeps the event loop; the slowest flag takes some 3 ms more. Of all bulk
# evaluations one at a time has a turn, so others wait for no more than one however many there are.
TURN_S: Final = 0.002
BULK_TENANT_MAX: Final = 16
BULK_MAX: Final = 64
BULK_RETRY_S: Final = 1.0

_SCHEMA: Final = SCHEMA_NAMED["flags"]

Scope = tuple[str, str, str, str, str | None, str | None]


class _Known(msgspec.Struct, frozen=True):
    """One version of a flag, ready to be evaluated, or what is wrong with it."""

    etag: str
    flag: Flag | Evaluation
    weight: int


class Flags:
    """The flags of whoever asks, by the bound tenant, env and surface. On one event loop.

    Every method raises Forbidden (the role does not grant reading definitions), Invalid, MissingRoute,
    ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt.
    """

    def __init__(self, definitions: Definitions, clock: Clock, *, flags_max: int = FLAGS_MAX) -> None:
        """`flags_max`: how many are evaluated at once."""
        self._definitions = definitions
        self._clock = clock
        self._flags_max = flags_max
        self._flags: Fresh[tuple[Scope, str], _Known | None] = Fresh(
            clock,
            age_max_s=AGE_MAX_S,
            entries_max=FLAGS_KEPT_MAX,
            weight_max=KEPT_BYTES_MAX,
            weigh=lambda known: _FLAG_BYTES if known is None else known.weight,
        )
        self._sets: Fresh[Scope, Mapping[str, _Known]] = Fresh(
            clock,
            age_max_s=AGE_MAX_S,
            entries_max=SETS_KEPT_MAX,
            weight_max=KEPT_BYTES_MAX,
            weigh=_weight,
        )
        self._turn = asyncio.Lock()
        self._evaluating = Slots(
            "evaluations of all flags",
            tenant_max=BULK_TENANT_MAX,
            process_max=BULK_MAX,
            retry_after_s=BULK_RETRY_S,
        )

    async def evaluate(
        self, context: RequestContext, key: str, evaluation_context: Mapping[str, Any]
    ) -> Evaluation:
        """What a flag says. No read while it is fresh, else one.

        A flag that is not there, or cannot be evaluated, is an Evaluation whose reason is ERROR.
        """
        context.require_data("definitions.read")
        check_context(evaluation_context)
        place = (_scope(context), key)
        known = self._flags.kept(place, UNSET)
        if known is UNSET:
            known = await self._flags.get(place, partial(self._read_one, context, check_id(key, "key")))
        if known is None:
            return failure(key, "FLAG_NOT_FOUND", "there is no such flag")
        return _evaluated(known, evaluation_context, self._clock.now())

    async def evaluate_all(
        self, context: RequestContext, evaluation_context: Mapping[str, Any]
    ) -> tuple[Evaluation, ...]:
        """What every flag of the surface says, by key. No read while they are fresh, else one a page.

        Once the flags have taken `BULK_STEPS_MAX` together, those that need more steps are errors. Raises
        TooLarge for a surface with more than `FLAGS_MAX` flags, or `SET_BYTES_MAX` of them, and Throttled
        where the tenant has `BULK_TENANT_MAX` of these under way, or the process `BULK_MAX`.
        """
        context.require_data("definitions.read")
        check_context(evaluation_context)

        known = await self._sets.get(_scope(context), partial(self._read_all, context))
        with self._evaluating.hold(context.tenant_id):
            return await self._evaluated_in_turns(known.values(), evaluation_context)

    async def close(self) -> None:
        """End the reads under way."""
        await self._flags.close()
        await self._sets.close()

    async def _evaluated_in_turns(
        self, known: Iterable[_Known], evaluation_context: Mapping[str, Any]
    ) -> tuple[Evaluation, ...]:
        now_s, allowance = self._clock.now(), Allowance(BULK_STEPS_MAX)
        evaluations: list[Evaluation] = []
        remaining = iter(known)
        while True:
            async with self._turn:
                end_s = self._clock.monotonic() + TURN_S
                for one in remaining:
                    evaluations.append(_evaluated(one, evaluation_context, now_s, allowance))
                    if self._clock.monotonic() >= end_s:
                        break
                else:
                    return tuple(evaluations)
                # The turn is kept meanwhile: whoever waits for it has theirs in the next round of the loop.
                await asyncio.sleep(0)

    async def _read_one(self, context: RequestContext, key: str, before: _Known | None) -> _Known | None:
        try:
            record = await self._definitions.get(context, _SCHEMA, key)
        except NotFound:
            return None
        return _known(record, before)

    async def _read_all(
        self, context: RequestContext, before: Mapping[str, _Known] | None
    ) -> Mapping[str, _Known]:
        known: dict[str, _Known] = {}
        before = before or {}
        window = Window(limit=LIMIT_MAX)
        while True:
            listed = await self._definitions.list(context, _SCHEMA, window=window)
            end_s = self._clock.monotonic() + TURN_S
            for record in listed.items:
                known[record.id] = _known(record, before.get(record.id))
                if self._clock.monotonic() >= end_s:  # A long rule takes a millisecond or two to compile.
                    await asyncio.sleep(0)
                    end_s = self._clock.monotonic() + TURN_S
            if len(known) > self._flags_max or _weight(known) > SET_BYTES_MAX:
                raise TooLarge(
                    f"at most {self._flags_max:,} flags of {SET_BYTES_MAX:,} bytes together are evaluated at "
                    "once; ask for them one by one"
                )
            if listed.after is None:
                return known
            window = Window(limit=LIMIT_MAX, after=listed.after)


def _scope(context: RequestContext) -> Scope:
    """What a flag is found by, and what its route may depend on."""
    return (
        context.tenant_id,
        context.mode,
        context.env,
        context.surface_id,
        context.app_id,
        context.project_id,
    )


def _weight(known: Mapping[str, _Known]) -> int:
    return _FLAG_BYTES + sum(one.weight for one in known.values())


def _known(record: Definition, before: _Known | None) -> _Known:
    """The record's flag, compiled anew only if this is another version than the one before."""
    if before is not None and before.etag == record.etag:
        return before
    weight = _FLAG_BYTES + len(encode_json(record.json_blob))
    return _Known(record.etag, _compiled(record), weight)


def _compiled(record: Definition) -> Flag | Evaluation:
    try:
        return Flag(record.id, msgspec.convert(record.json_blob, FlagDefinition))
    except (EnginesError, msgspec.ValidationError):  # It was stored under rules that are no longer ours.
        return failure(record.id, "PARSE_ERROR", "the definition of the flag cannot be read")


def _evaluated(
    known: _Known, evaluation_context: Mapping[str, Any], now_s: float, allowance: Allowance | None = None
) -> Evaluation:
    flag = known.flag
    return flag.evaluate(evaluation_context, now_s, allowance) if isinstance(flag, Flag) else flag
