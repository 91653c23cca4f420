"""Measurements and readings of KPIs: what a client may say, what is stored, what is shown.

Owns the types, the limits of a measurement and the arithmetic of a reading. Leaves where measurements lie and
which of them a window holds to `stores/kpis.py`.

A measurement is an IEEE 754 double, as JSON numbers are read here: an integer beyond 2^53 is rounded to the
nearest. Sums are exact for these doubles and rounded once (`math.fsum`, after Shewchuk 1997, "Adaptive
precision floating-point arithmetic"), so that neither their order nor their number adds an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines.clock import timestamp
from engines.codec import Codec
from engines.core.cursor import Cursors
from engines.core.log import StoredEvent
from engines.errors import Invalid
from engines.scope import RequestContext
from engines.stores.definition_cache import shaped
from engines.stores.definition_records import Definition
from engines.stores.definition_shapes import Kpi, Name
from engines.stores.event_records import Instant, instant_ms
from engines.stores.scoped import IdentityFields, Stamped, check_body

# So that no sum of the measurements that a reading may rest on leaves the range of a double.
VALUE_MAX: Final = 1e300
LABELS_MAX: Final = 20
LABEL_CHARS_MAX: Final = 200

Aggregation = Literal["last", "sum", "mean", "count"]
KpiStatus = Literal["below", "within", "above", "no_data"]
Labels = Annotated[dict[Name, Annotated[str, Meta(max_length=LABEL_CHARS_MAX)]], Meta(max_length=LABELS_MAX)]


class MeasurementInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a new measurement. `occurred_at`: RFC 3339, the client's own time; windows go by ours."""

    value: float
    occurred_at: Instant | None = None
    labels: Labels = msgspec.field(default_factory=dict)


class Measurement(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A measurement as it is shown. `recorded_at` is the server's time, by which windows go.

    Of one whose text was removed for ever its place, id and time are left; `value` is null.
    """

    measurement_id: str
    kpi_id: str
    value: float | None
    occurred_at: str | None = None
    labels: Labels = msgspec.field(default_factory=dict)
    recorded_at: str
    position: int
    cursor: str


class KpiReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a KPI says of its window, which ends now. `version`: the definition's.

    `value` is null, and the status `no_data`, where nothing was measured in the window; a count is then 0.
    The corridor's bounds are within it. The measurements are those of the positions from `first_position` to
    `last_position`, `count` of them. One that was removed for ever is none of a sum's or a mean's, though its
    position lies there; of a count it is one still.
    """

    kpi_id: str
    surface_id: str
    version: int
    aggregation: Aggregation
    unit: str
    value: float | None
    status: KpiStatus
    floor: float | None
    ceiling: float | None
    window_seconds: int
    since: str
    until: str
    count: int
    first_position: int | None
    last_position: int | None


class StoredMeasurement(
    Stamped, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="measurement/1"
):
    """The stored text: all but position, id and time, which its commit has."""

    kpi_id: str
    value: float
    occurred_at: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)


STORED: Final = Codec(StoredMeasurement)


class KpiRule(msgspec.Struct, frozen=True, kw_only=True):
    """A KPI's definition, ready to be applied."""

    kpi_id: str
    version: int
    kpi: Kpi

    @property
    def has_corridor(self) -> bool:
        return self.kpi.floor is not None or self.kpi.ceiling is not None


class Measured(msgspec.Struct, frozen=True, gc=False):
    """One measurement of a window."""

    position: int
    at_ms: int
    value: float


class Span(msgspec.Struct, frozen=True):
    """What a window holds: `count` measurements from `first` to `last`, which a reading rests on.

    Of them `measured` are those that the aggregation asks for: the newest, all, or none to be counted. Where
    that is all: `where` they lie, by backend and generation, and when they were last read as a whole, by the
    monotonic clock.
    """

    count: int
    first: int
    last: int
    measured: tuple[Measured, ...] = ()
    where: tuple[str, int] | None = None
    whole_at_s: float = 0.0


def rule_of(record: Definition) -> KpiRule:
    return KpiRule(kpi_id=record.id, version=record.version, kpi=shaped(record, Kpi))


def checked(context: RequestContext, measurement: MeasurementInput) -> MeasurementInput:
    """Raises Invalid, ContextMismatch."""
    measurement = check_body(context, measurement)
    if not math.isfinite(measurement.value) or abs(measurement.value) > VALUE_MAX:
        raise Invalid(f"a finite number whose size is at most {VALUE_MAX:g}", field="value")
    if measurement.occurred_at is not None:
        instant_ms(measurement.occurred_at, "occurred_at")
    return measurement


def shown(event: StoredEvent, kpi_id: str, context: RequestContext, cursors: Cursors) -> Measurement:
    """Raises Corrupt."""
    place: dict[str, Any] = {
        "measurement_id": event.event_id,
        "recorded_at": timestamp(event.at_ms / 1_000),
        "position": event.position,
        "cursor": cursors.of_position(event.position),
    }
    if event.body is None:
        return Measurement(
            tenant_id=context.tenant_id,
            mode="",
            env=context.env,
            user_id="",
            surface_id=context.surface_id,
            run_id="",
            step_id="",
            kpi_id=kpi_id,
            value=None,
            **place,
        )
    return Measurement(**msgspec.structs.asdict(STORED.decode(event.body)), **place)


def reading_of(rule: KpiRule, surface_id: str, span: Span, *, now: float) -> KpiReading:
    """The reading of what the window holds at `now`, in epoch seconds."""
    kpi = rule.kpi
    value = _aggregated(kpi.aggregation, span)
    return KpiReading(
        kpi_id=rule.kpi_id,
        surface_id=surface_id,
        version=rule.version,
        aggregation=kpi.aggregation,
        unit=kpi.unit,
        value=value,
        status=_status(value, kpi),
        floor=kpi.floor,
        ceiling=kpi.ceiling,
        window_seconds=kpi.window_seconds,
        since=timestamp(now - kpi.window_seconds),
        until=timestamp(now),
        count=span.count,
        first_position=span.first if span.count else None,
        last_position=span.last if span.count else None,
    )


def _aggregated(aggregation: Aggregation, span: Span) -> float | None:
    if aggregation == "count":
        return float(span.count)
    values: Sequence[float] = [one.value for one in span.measured]
    if not values:
        return None
    if aggregation == "last":
        return values[-1]
    total = math.fsum(values)
    return total if aggregation == "sum" else total / len(values)


def _status(value: float | None, kpi: Kpi) -> KpiStatus:
    if value is None:
        return "no_data"
    if kpi.floor is not None and value < kpi.floor:
        return "below"
    if kpi.ceiling is not None and value > kpi.ceiling:
        return "above"
    return "within"
