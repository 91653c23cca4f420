"""The files of an export: events as lines of JSON, and as rows of Parquet.

Owns what stands in a part and how it is encoded. Leaves files and their names to `client/export_files.py`.

JSON Lines (https://jsonlines.org): one event a line with the members of `GET /events`, null where one is
absent. Parquet: one row an event; `COLUMNS` are its columns. An event's payload is a column of JSON text,
because every type of event has another; so is no member lost and no column appears with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Protocol

from engines.client.export_files import Format
from engines.client.results import Causality, Event
from engines.codec import encode_json
from engines.errors import Invalid

# A row group is held in memory until it is written.
ROW_GROUP_EVENTS: Final = 10_000
ROW_GROUP_BYTES: Final = 16 * 1024 * 1024

SCHEMA: Final = "engines.event/1"
ColumnKind = Literal["int64", "string", "timestamp[ms, UTC]", "timestamp[us, UTC]"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NO_CAUSE: Final = Causality()


class Encoder(Protocol):
    """Events on their way into one file. `finish` before the file is closed."""

    def add(self, event: Event) -> int:
        """Take one event; about how many bytes it has as JSON."""
        ...

    def finish(self) -> None:
        """Write what still waits."""
        ...


class JsonLines:
    """One event a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, event: Event) -> int:
        return self._file.write(f"{encode_json(event)}\n".encode())

    def finish(self) -> None:
        """Every line was written when it was added."""


class Column(NamedTuple):
    """A column of a Parquet part: its type by Arrow's name for it, and its value of an event."""

    kind: ColumnKind
    value: Callable[[Event], Any]
    is_nullable: bool = True


class Parquet:
    """One event a row, compressed, in groups of rows."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises Invalid where pyarrow is not installed."""
        arrow, parquet = _pyarrow()
        self._arrow = arrow
        fields = [
            arrow.field(name, _arrow_type(arrow, column.kind), nullable=column.is_nullable)
            for name, column in COLUMNS.items()
        ]
        self._schema = arrow.schema(fields, metadata={"schema": SCHEMA})
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._waiting_bytes = 0

    def add(self, event: Event) -> int:
        row = tuple(column.value(event) for column in COLUMNS.values())
        size = sum(len(value) for value in row if isinstance(value, str))
        self._rows.append(row)
        self._waiting_bytes += size
        if len(self._rows) >= ROW_GROUP_EVENTS or self._waiting_bytes >= ROW_GROUP_BYTES:
            self._write_group()
        return size

    def finish(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        columns = zip(self._schema, zip(*self._rows, strict=True), strict=True)
        arrays = [self._arrow.array(values, type=field.type) for field, values in columns]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()
        self._waiting_bytes = 0


ENCODERS: Final[Mapping[Format, Callable[[BinaryIO], Encoder]]] = {"jsonl": JsonLines, "parquet": Parquet}


def require(format_: Format) -> None:
    """Raises Invalid where what the format needs is not installed."""
    if format_ == "parquet":
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise Invalid("Parquet is not installed: pip install 'engines[parquet]'", field="format") from error
    return pa, pq


def _arrow_type(arrow: Any, kind: ColumnKind) -> Any:
    types = {
        "int64": arrow.int64,
        "string": arrow.string,
        "timestamp[ms, UTC]": partial(arrow.timestamp, "ms", tz="UTC"),
        "timestamp[us, UTC]": partial(arrow.timestamp, "us", tz="UTC"),
    }
    return types[kind]()


def _microseconds(instant: str) -> int:
    """Since 1970; digits beyond microseconds are cut off. RFC 3339 may have a small t and z."""
    return (datetime.fromisoformat(instant.upper()) - _EPOCH) // _MICROSECOND


def _payload(event: Event) -> str | None:
    return None if event.payload is None else encode_json(event.payload)


def _occurred_at(event: Event) -> int | None:
    return None if event.occurred_at is None else _microseconds(event.occurred_at)


COLUMNS: Final[Mapping[str, Column]] = {
    "position": Column("int64", attrgetter("position"), is_nullable=False),
    "event_id": Column("string", attrgetter("event_id"), is_nullable=False),
    "timestamp": Column(
        "timestamp[ms, UTC]", lambda event: _microseconds(event.timestamp) // 1000, is_nullable=False
    ),
    "occurred_at": Column("timestamp[us, UTC]", _occurred_at),
    "event_type": Column("string", attrgetter("event_type"), is_nullable=False),
    "source": Column("string", attrgetter("source"), is_nullable=False),
    **{
        name: Column("string", attrgetter(name))
        for name in (
            "tenant_id",
            "mode",
            "env",
            "user_id",
            "surface_id",
            "app_id",
            "project_id",
            "run_id",
            "step_id",
            "thread_id",
            "parent_event_id",
        )
    },
    "trace_id": Column("string", lambda event: (event.causality or _NO_CAUSE).trace_id),
    "span_id": Column("string", lambda event: (event.causality or _NO_CAUSE).span_id),
    "payload": Column("string", _payload),
    "cursor": Column("string", attrgetter("cursor"), is_nullable=False),
}
