"""The temperature of a surface: how far its KPIs stand between their floors and ceilings, weighted.

Owns that one number and what it was made from. Leaves the three settings (floors, ceilings, weights), each
set for itself, to `stores/definitions.py`, and the readings to `stores/kpis.py`.

A KPI's heat is (value - floor) / (ceiling - floor), cut off at 0 and 1; the temperature is their mean by
weight. It is never guessed: where anything is missing that it needs, it is null, and `missing` says what.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from engines.clock import Clock, timestamp
from engines.errors import NotFound
from engines.scope import RequestContext
from engines.stores.definition_cache import DefinitionCache, as_server, shaped
from engines.stores.definition_records import Definition
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definition_shapes import Temperature
from engines.stores.definitions import Definitions
from engines.stores.kpi_records import KpiReading
from engines.stores.kpis import CorridorFacts, Kpis, made_from

READINGS_AT_ONCE: Final = 8
_SCHEMA: Final = SCHEMA_NAMED["temperature"]

Read = Callable[[str], Awaitable[KpiReading | None]]
Lack = Literal["weights", "weight", "floor", "ceiling", "range", "kpi", "reading"]


class Missing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a temperature lacks.

    `weights`: no KPI has a weight above 0; `weight`: this one is below 0; `range`: the ceiling does not lie
    above the floor; `kpi`: there is no such definition; `reading`: nothing was measured in its window.
    """

    what: Lack
    kpi_id: str | None = None


class KpiHeat(msgspec.Struct, frozen=True, kw_only=True):
    """One KPI's part of a temperature. `heat` is from 0 to 1, null where anything is missing."""

    kpi_id: str
    weight: float
    floor: float | None
    ceiling: float | None
    reading: KpiReading | None
    heat: float | None


class TemperatureReading(msgspec.Struct, frozen=True, kw_only=True):
    """A surface's temperature, from 0 to 1; null where `missing` is not empty."""

    surface_id: str
    temperature: float | None
    at: str
    kpis: tuple[KpiHeat, ...]
    missing: tuple[Missing, ...]


class Temperatures:
    """The temperature of the bound surface. On one event loop.

    Every method raises Forbidden (the role does not grant it), ContextMismatch, MissingRoute (of settings or
    of KPIs), ForbiddenBackendClass, TooLarge, Throttled, Unavailable, BackendRefused, Corrupt.
    """

    def __init__(self, definitions: Definitions, kpis: Kpis, clock: Clock) -> None:
        self._definitions = definitions
        self._kpis = kpis
        self._clock = clock
        self._settings = DefinitionCache(definitions, _SCHEMA, _values, clock)

    async def reading(self, context: RequestContext) -> TemperatureReading:
        """The temperature now, of everything that was acknowledged before the call.

        Each KPI with a weight above 0 costs the reads of its reading, `READINGS_AT_ONCE` of them at once.
        """
        context.require_data("kpis.read")
        listed = await self._definitions.list(as_server(context), _SCHEMA)
        settings = {record.id: _values(record) for record in listed.items}

        async def read(name: str) -> KpiReading | None:
            try:
                return await self._kpis.reading(context, name)
            except NotFound:
                return None

        return await _reading(context, settings, read, self._clock.now())

    async def corridors_for(
        self,
        context: RequestContext,
        action: str,  # noqa: ARG002  (the gates name it: a temperature is every action's)
        *,
        at_s: float,
    ) -> Sequence[CorridorFacts]:
        """Of each KPI with a weight above 0 its reading, floor and ceiling, none older than a second.

        They hold for every action on the surface. One whose floor or ceiling is missing has no reading.
        No permission is asked for.
        """

        async def read(name: str) -> KpiReading | None:
            return await self._kpis.recent_reading(context, name)

        reading = await _reading(context, await self._settings.get(context), read, at_s)
        if reading.missing == (Missing("weights"),):
            return ()
        return [
            CorridorFacts(
                name=one.kpi_id,
                reading=None if one.heat is None or one.reading is None else one.reading.value,
                floor=one.floor,
                ceiling=one.ceiling,
                made_from={} if one.reading is None else made_from(one.reading),
            )
            for one in reading.kpis
            if one.weight > 0
        ]

    async def close(self) -> None:
        """End the reads under way."""
        await self._settings.close()


async def _reading(
    context: RequestContext, settings: Mapping[str, Mapping[str, float]], read: Read, now: float
) -> TemperatureReading:
    weights = settings.get("weights", {})
    readings = await _readings(read, [name for name, weight in weights.items() if weight > 0])
    parts = [
        _part(name, weight, settings.get("floors", {}), settings.get("ceilings", {}), readings.get(name))
        for name, weight in sorted(weights.items())
    ]
    missing = [lack for part in parts for lack in _lacks(part)]
    if not any(part.weight > 0 for part in parts):
        missing.append(Missing("weights"))
    return TemperatureReading(
        surface_id=context.surface_id,
        temperature=None if missing else _mean(parts),
        at=timestamp(now),
        kpis=tuple(parts),
        missing=tuple(missing),
    )


async def _readings(read: Read, names: Sequence[str]) -> Mapping[str, KpiReading | None]:
    found: dict[str, KpiReading | None] = {}
    for start in range(0, len(names), READINGS_AT_ONCE):
        some = names[start : start + READINGS_AT_ONCE]
        if len(some) == 1:  # Without a task, which would cost more than a reading that is at hand.
            found[some[0]] = await read(some[0])
            continue
        found.update(zip(some, await asyncio.gather(*map(read, some)), strict=True))
    return found


def _values(record: Definition) -> Mapping[str, float]:
    return shaped(record, Temperature).values


def _part(
    name: str,
    weight: float,
    floors: Mapping[str, float],
    ceilings: Mapping[str, float],
    reading: KpiReading | None,
) -> KpiHeat:
    floor, ceiling = floors.get(name), ceilings.get(name)
    heat = None
    if weight > 0 and reading is not None and floor is not None and ceiling is not None:
        heat = _heat(reading.value, floor, ceiling)
    return KpiHeat(kpi_id=name, weight=weight, floor=floor, ceiling=ceiling, reading=reading, heat=heat)


def _heat(value: float | None, floor: float, ceiling: float) -> float | None:
    if value is None or not floor < ceiling:
        return None
    if not floor < value < ceiling:  # Also keeps a difference that is too large for a double out of the way.
        return 0.0 if value <= floor else 1.0
    # Halved, because the whole width may be more than a double holds.
    return (value / 2 - floor / 2) / (ceiling / 2 - floor / 2)


def _lacks(part: KpiHeat) -> Sequence[Missing]:
    if part.weight < 0:
        return [Missing("weight", part.kpi_id)]
    if part.weight == 0:
        return []
    lacks: list[Missing] = []
    if part.floor is None:
        lacks.append(Missing("floor", part.kpi_id))
    if part.ceiling is None:
        lacks.append(Missing("ceiling", part.kpi_id))
    if part.floor is not None and part.ceiling is not None and not part.floor < part.ceiling:
        lacks.append(Missing("range", part.kpi_id))
    if part.reading is None:
        lacks.append(Missing("kpi", part.kpi_id))
    elif part.reading.value is None:
        lacks.append(Missing("reading", part.kpi_id))
    return lacks


def _mean(parts: Sequence[KpiHeat]) -> float:
    """By weight; scaled by the heaviest, so that no sum leaves the range of a double."""
    heaviest = max(part.weight for part in parts)
    shares = [(part.weight / heaviest, part.heat) for part in parts if part.heat is not None]
    return math.fsum(share * heat for share, heat in shares) / math.fsum(share for share, _ in shares)
