"""KPIs in force: their measurements as logs, and what a window of them says.

Owns the log of each KPI, pages of it, and readings. Leaves definitions and corridors to
`stores/definitions.py`, the types and the arithmetic to `stores/kpi_records.py`, the log to `core/log.py`.

A KPI's log is found by its surface and id and stays when its definition is deleted: one that is made anew
goes on with the same measurements. A window goes by the server's time of each measurement, which never goes
back within a log, so that it is found by a binary search and not by reading what is older.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.core.cursor import Cursors, list_scope
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window
from engines.core.log import PAGE_EVENTS_MAX, Entry, Log, Sealed, StoredEvent
from engines.core.place import Place, Places
from engines.errors import NotFound, TooLarge
from engines.ids import Ids
from engines.scope import RequestContext, check_id
from engines.stores.definition_cache import AGE_MAX_S, DefinitionCache, as_server
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definitions import Definitions
from engines.stores.fresh import Fresh
from engines.stores.kpi_records import (
    STORED,
    KpiReading,
    KpiRule,
    Measured,
    Measurement,
    MeasurementInput,
    Span,
    StoredMeasurement,
    checked,
    reading_of,
    rule_of,
    shown,
)
from engines.stores.open_logs import OpenLogs
from engines.stores.scoped import stamp
from engines.stores.strategy_locks import covers

# That one reading may rest on, where the aggregation asks for each of them (sum and mean), and that `last`
# looks through for one that was not removed for ever.
MEASUREMENTS_MAX: Final = 10_000
READINGS_KEPT_MAX: Final = 10_000
# Of the windows that are kept to read on from.
KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
# A redaction shows in nothing but the event itself, so a window is read on from for no longer than this. With
# the second that a reading may be old, what was removed for ever counts for a minute at most.
READ_ON_S_MAX: Final = 60.0 - AGE_MAX_S
_MEASURED_BYTES: Final = 120
# Events that `last` looks at first: the newest has its text, unless somebody was erased.
_NEWEST: Final = 10
_SCHEMA: Final = SCHEMA_NAMED["kpis"]


class RecordedMeasurement(msgspec.Struct, frozen=True):
    """A measurement as it was appended. `replayed`: an identical request, made before, did it."""

    record: Measurement
    replayed: bool = False


class CorridorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One reading and the bounds it should keep, each None where there is none.

    `passes_unread`: whether an action may happen while there is no reading. `made_from`: what the reading was
    made from, to explain it.
    """

    name: str
    reading: float | None
    floor: float | None
    ceiling: float | None
    passes_unread: bool = False
    made_from: dict[str, Any] = {}


class Kpis:
    """The KPIs of the bound surface. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt.
    """

    def __init__(
        self,
        places: Places,
        definitions: Definitions,
        ids: Ids,
        clock: Clock,
        *,
        measurements_max: int = MEASUREMENTS_MAX,
    ) -> None:
        self._places = places
        self._definitions = definitions
        self._clock = clock
        self._measurements_max = measurements_max
        self._logs = OpenLogs(ids, clock)
        self._rules = DefinitionCache(definitions, _SCHEMA, rule_of, clock)
        self._spans: Fresh[tuple[str, ...], Span] = Fresh(
            clock,
            age_max_s=AGE_MAX_S,
            entries_max=READINGS_KEPT_MAX,
            weight_max=KEPT_BYTES_MAX,
            weigh=lambda span: _MEASURED_BYTES * (1 + len(span.measured)),
        )

    async def measure(
        self,
        context: RequestContext,
        kpi_id: str,
        measurement: MeasurementInput,
        *,
        request: Request | None = None,
    ) -> RecordedMeasurement:
        """Append a measurement to a KPI that is defined. It stays as it is.

        Raises NotFound, IdempotencyKeyReused, OutcomeUnknown.
        """
        context.require_data("kpis.write")
        check_id(kpi_id, "id")
        measurement = checked(context, measurement)
        if kpi_id not in await self._rules.get(context):
            await self._rule(context, kpi_id)
        body = StoredMeasurement(
            **stamp(context),
            kpi_id=kpi_id,
            value=measurement.value,
            occurred_at=measurement.occurred_at,
            labels=measurement.labels,
        )
        text = STORED.encode(body)
        async with (
            self._places.changing(catalogue.KPIS, context) as place,
            self._using(context, place, kpi_id) as log,
        ):
            appended = await log.append([Entry(text)], request=request)
            event = StoredEvent(appended.first, appended.event_ids[0], appended.at_ms, text)
            if appended.replayed:  # The first answer, from its own context.
                event = (await log.list_after(appended.first - 1, limit=1)).events[0]
        record = shown(event, kpi_id, context, _cursors(context, kpi_id))
        return RecordedMeasurement(record, appended.replayed)

    async def measurements(
        self, context: RequestContext, kpi_id: str, *, window: Window = START
    ) -> Listed[Measurement]:
        """The measurements by position. Raises NotFound, Invalid (a limit, a cursor of another list)."""
        context.require_data("kpis.read")
        check_id(kpi_id, "id")
        await self._rule(context, kpi_id)
        window.checked()
        cursors = _cursors(context, kpi_id)
        after = None if window.after is None else cursors.position(window.after)
        place = await self._places.place(catalogue.KPIS, context)
        async with self._using(context, place, kpi_id) as log:
            if window.descending:
                batch = await log.list_before(after, limit=window.limit)
            else:
                batch = await log.list_after(after or 0, limit=window.limit)
        items = tuple(shown(event, kpi_id, context, cursors) for event in batch.events)
        return Listed(items, None if batch.end or not items else items[-1].cursor)

    async def reading(self, context: RequestContext, kpi_id: str) -> KpiReading:
        """What the KPI says now, with every measurement that was acknowledged before the call.

        Raises NotFound, TooLarge (a sum or mean over more than `MEASUREMENTS_MAX` measurements, and a `last`
        where the newest so many of the window were removed for ever).
        """
        context.require_data("kpis.read")
        check_id(kpi_id, "id")
        rule = await self._rule(context, kpi_id)
        span = await self._read(context, rule, None)
        return reading_of(rule, context.surface_id, span, now=self._clock.now())

    async def recent_reading(self, context: RequestContext, kpi_id: str) -> KpiReading | None:
        """The same as it was at most a second ago, without asking for a permission; None: no such KPI.

        A measurement that was removed for ever may count in a sum or mean for up to a minute.
        """
        rule = (await self._rules.get(context)).get(kpi_id)
        return None if rule is None else await self._recent(context, rule, self._clock.now())

    async def corridors_for(
        self, context: RequestContext, action: str, *, at_s: float
    ) -> Sequence[CorridorFacts]:
        """The corridors that hold for the action on the bound surface, as they were at most a second ago.

        A KPI without bounds has none; one that names no actions holds for all. No permission is asked for.
        `at_s`: when their windows end; what was measured in the second before may be missing, and what was
        removed for ever in the minute before may count.
        """
        rules = [
            rule
            for rule in (await self._rules.get(context)).values()
            if rule.has_corridor
            and (not rule.kpi.actions or any(covers(pattern, action) for pattern in rule.kpi.actions))
        ]
        found: list[CorridorFacts] = []
        for rule in rules:
            reading = await self._recent(context, rule, at_s)
            found.append(
                CorridorFacts(
                    name=rule.kpi_id,
                    reading=reading.value,
                    floor=rule.kpi.floor,
                    ceiling=rule.kpi.ceiling,
                    passes_unread=rule.kpi.passes_unread,
                    made_from=made_from(reading),
                )
            )
        return found

    async def close(self) -> None:
        """Finish the appends that wait, end the reads under way."""
        await self._spans.close()
        await self._rules.close()
        await self._logs.close()

    async def _rule(self, context: RequestContext, kpi_id: str) -> KpiRule:
        """The definition as it stands now. Raises NotFound."""
        try:
            return rule_of(await self._definitions.get(as_server(context), _SCHEMA, kpi_id))
        except NotFound:
            raise NotFound("there is no such KPI on this surface") from None

    async def _recent(self, context: RequestContext, rule: KpiRule, now: float) -> KpiReading:
        async def read(before: Span | None) -> Span:
            return await self._read(context, rule, before)

        key = (
            *(context.tenant_id, context.mode, context.env, context.surface_id),
            *(context.app_id or "", context.project_id or ""),
            *(rule.kpi_id, rule.kpi.aggregation, str(rule.kpi.window_seconds)),
        )
        span = await self._spans.get(key, read)
        return reading_of(rule, context.surface_id, span, now=now)

    async def _read(self, context: RequestContext, rule: KpiRule, before: Span | None) -> Span:
        """What the window holds now; what `before` held here is not read again for a while."""
        began_s = self._clock.monotonic()
        after_ms = int((self._clock.now() - rule.kpi.window_seconds) * 1_000)
        place = await self._places.place(catalogue.KPIS, context)
        where = place.backend_id, place.generation
        if before is not None and (before.where != where or began_s - before.whole_at_s >= READ_ON_S_MAX):
            before = None
        async with self._using(context, place, rule.kpi_id) as log:
            if rule.kpi.aggregation == "last":
                return await self._newest(log, rule.kpi_id, after_ms)
            first, last = await log.seek(after_ms + 1), (await log.head()).position
            if last < first:
                return Span(0, first, last)
            if rule.kpi.aggregation == "count":
                return Span(last - first + 1, first, last)
            if before is not None and first < before.first:
                before = None  # A clock that was set back: what the window begins with was never read.
            measured = await self._all(log, rule.kpi_id, first, last, before)
        whole_at_s = began_s if before is None else before.whole_at_s
        return Span(len(measured), first, last, measured, where, whole_at_s)

    async def _all(
        self, log: Log, kpi_id: str, first: int, last: int, before: Span | None
    ) -> tuple[Measured, ...]:
        if last - first + 1 > self._measurements_max:
            raise TooLarge(
                f"the window of {kpi_id!r} holds {last - first + 1:,} measurements, and a sum or mean rests "
                f"on at most {self._measurements_max:,}: shorten window_seconds, measure less often, or count"
            )
        measured = [] if before is None else [one for one in before.measured if one.position >= first]
        position = max(first - 1, before.last if before is not None else 0)
        while position < last:
            limit = min(PAGE_EVENTS_MAX, last - position)
            events = (await log.list_after(position, limit=limit)).events
            measured += [_measured(event) for event in events if event.body is not None]
            position = events[-1].position
        return tuple(measured)

    async def _newest(self, log: Log, kpi_id: str, after_ms: int) -> Span:
        """The newest measurement that has its text, if it was made after that time.

        Past the bound it is not known whether there is one, and "no data" may let an action through.
        """
        looked_at, position, limit = 0, None, _NEWEST
        while looked_at < self._measurements_max:
            batch = await log.list_before(position, limit=min(limit, self._measurements_max - looked_at))
            for event in batch.events:
                if event.at_ms <= after_ms:
                    return Span(0, 0, 0)
                if event.body is not None:
                    return Span(1, event.position, event.position, (_measured(event),))
            if batch.end:
                return Span(0, 0, 0)
            looked_at += len(batch.events)
            position, limit = batch.events[-1].position, PAGE_EVENTS_MAX
        raise TooLarge(
            f"the newest {looked_at:,} measurements in the window of {kpi_id!r} were removed for ever, and "
            "older ones are not looked for: measure anew, or shorten window_seconds"
        )

    @contextlib.asynccontextmanager
    async def _using(self, context: RequestContext, place: Place, kpi_id: str) -> AsyncIterator[Log]:
        stream = _stream(context, kpi_id)
        try:
            async with self._logs.use(place, stream) as log:
                yield log
        except Sealed:
            self._logs.drop(place, stream)
            raise


def made_from(reading: KpiReading) -> dict[str, Any]:
    """What explains a reading."""
    return {
        "kpi_id": reading.kpi_id,
        "aggregation": reading.aggregation,
        "window_seconds": reading.window_seconds,
        "count": reading.count,
        "first_position": reading.first_position,
        "last_position": reading.last_position,
    }


def _measured(event: StoredEvent) -> Measured:
    assert event.body is not None
    return Measured(event.position, event.at_ms, STORED.decode(event.body).value)


def _stream(context: RequestContext, kpi_id: str) -> str:
    """A surface and an id together may be longer than a partition's name has room for; a digest is not."""
    digest = hashlib.sha256(f"{context.surface_id}!{kpi_id}".encode()).hexdigest()
    return f"kpi-{digest[:40]}"


def _cursors(context: RequestContext, kpi_id: str) -> Cursors:
    return list_scope(catalogue.KPIS, context.tenant_id, context.env, context.surface_id, kpi_id)
