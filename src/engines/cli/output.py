"""What commands print: tables for people, JSON for programs.

Owns both forms, and how an error is told. With `--json` standard output holds one JSON document (a list is
`{"items": [...]}`), or one line of JSON an event where a command follows; names are those of the HTTP
contract. Errors go to standard error, never with a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines import errors
from engines.codec import encode_json
from engines.errors import EnginesError

# How a command ends; 2, a wrong call, is the parser's own.
OK: Final = 0
FAILED: Final = 1

AsJson = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, help="Print JSON, for programs.")
]

# Where standard output is no terminal, nothing is cut to a width.
_PLAIN_WIDTH: Final = 500

_BOOKKEEPING: Final = frozenset({"etag", "version", "created_at", "updated_at", "updated_by"})

_NEXT: Final[Mapping[type[EnginesError], str]] = {
    errors.TenantRequired: "name one of your tenants with --tenant",
    errors.Unauthenticated: "the token may have expired; a lab's are in its lab.json (--lab DIR)",
    errors.ContextMismatch: "the tenant, env, surface, app or project that you named is not the credential's",
    errors.Forbidden: "use a credential with another role, or ask who has one: an owner, or t_system's admin",
    errors.PreconditionFailed: "somebody changed it meanwhile: look at it again, then repeat",
    errors.Throttled: "wait a moment and repeat",
    errors.MissingRoute: "engines routes list shows what there is; engines routes put KIND BACKEND adds one",
    errors.ForbiddenBackendClass: "route the kind to a backend whose class the tenant's mode allows",
    errors.Unavailable: "is the server running? engines doctor tells more",
    errors.OutcomeUnknown: "it may have been applied: look before you repeat",
    errors.BackendRefused: "the operator mends it: engines backends probe ID tells more",
    errors.Corrupt: "call the operator; engines events verify shows where a log breaks",
}


class _Console(Console):
    """rich's would by itself end the process where nobody reads any more; that is the command's to decide."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Standard output for people."""
    return _Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """One line of JSON, at once."""
    print(encode_json(value), flush=True)


def print_records(records: Sequence[Any], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """A list of records: a table of `columns`, or one document."""
    if as_json:
        print_json({"items": records})
        return
    rows = [msgspec.to_builtins(record) for record in records]
    if rows:
        print_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows])
    else:
        console().print(empty)


def print_record(record: Any, *, as_json: bool) -> None:
    """One record: a line for each member that it has, or one document."""
    if as_json:
        print_json(record)
        return
    told = msgspec.to_builtins(record)
    # What a record is comes first, and the server's bookkeeping last.
    members = {name: told[name] for name in sorted(told, key=_BOOKKEEPING.__contains__)}
    print_table(("", ""), [[name, _cell(value)] for name, value in members.items() if value is not None])


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of text under headings; headings of nothing but empty text are left out."""
    table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return encode_json(value)


def print_error(error: EnginesError, *, as_json: bool) -> None:
    """What went wrong, under which name the operator finds it, and what to do next."""
    if as_json:
        told = {
            "code": error.code,
            "detail": error.detail,
            "field": error.field,
            "resource_kind": error.resource_kind,
            "request_id": error.request_id,
        }
        print(
            encode_json({name: value for name, value in told.items() if value is not None}), file=sys.stderr
        )
        return
    where = "" if error.field is None else f" ({error.field})"
    print(f"engines: {error.code}: {error.detail}{where}", file=sys.stderr)
    if error.request_id is not None:
        print(f"request id: {error.request_id}", file=sys.stderr)
    hint = next((_NEXT[kind] for kind in type(error).__mro__ if kind in _NEXT), None)
    if hint is not None:
        print(f"next: {hint}", file=sys.stderr)
