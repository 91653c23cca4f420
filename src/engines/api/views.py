"""What calls show and take beside the stores' own types: pages, windows, control-plane records with an ETag.

Owns deriving those types from the records, so that a field is declared once. Leaves describing them to
`api/openapi.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engines.api.call import Call
from engines.api.reply import Reply, json_reply, record_reply
from engines.control.store import Listing, Stored
from engines.core.cursor import CURSOR_CHARS_MAX, Cursors
from engines.core.listing import LIMIT_DEFAULT, LIMIT_MAX, Listed, Window
from engines.errors import ContextMismatch, Invalid
from engines.scope import RequestContext

T = TypeVar("T")

# What a control-plane cursor's key begins with: a cursor holds a document key, and those begin with a letter.
_PREFIX: Final = "c!"
# Names of identities: one that is not the request's is a mismatch, and never merely a wrong value.
_IDENTITIES: Final = frozenset({"tenant_id"})

Cursor = Annotated[str, Meta(min_length=1, max_length=CURSOR_CHARS_MAX)]
Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a list that a client asks for."""

    limit: Limit = LIMIT_DEFAULT
    after: Cursor | None = None
    order: Literal["asc", "desc"] = "asc"

    def window(self) -> Window:
        return Window(limit=self.limit, after=self.after, descending=self.order == "desc")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list. `after` goes on from its end; null means that there is nothing more."""

    items: tuple[T, ...]
    after: str | None


def page_reply(listed: Listed[Any]) -> Reply:
    """A store's page."""
    return json_reply(Page(listed.items, listed.after))


def shown(record_type: type[msgspec.Struct], *, without: Iterable[str] = ()) -> type[msgspec.Struct]:
    """How a control-plane record is shown: its members, and the bookkeeping of `Stored`."""
    members: list[Any] = [
        (field.name, field.type, msgspec.field(name=field.encode_name))
        for field in msgspec.structs.fields(record_type)
        if field.name not in without
    ]
    bookkeeping: list[Any] = [
        ("etag", str),
        ("version", int),
        ("created_at", str),
        ("updated_at", str),
        ("updated_by", str),
    ]
    view = msgspec.defstruct(f"{record_type.__name__}View", members + bookkeeping, frozen=True, kw_only=True)
    view.__doc__ = record_type.__doc__
    return view


def partial(record_type: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The body of a PATCH: any of the record's members."""
    members: list[Any] = [
        (field.name, field.type | UnsetType, msgspec.field(name=field.encode_name, default=UNSET))
        for field in msgspec.structs.fields(record_type)
    ]
    patch = msgspec.defstruct(
        f"{record_type.__name__}Patch", members, frozen=True, kw_only=True, forbid_unknown_fields=True
    )
    patch.__doc__ = f"Members of the record to replace. {record_type.__doc__}"
    return patch


def changes_of(patch: msgspec.Struct) -> Mapping[str, Any]:
    """The members that a PATCH names, by their names in JSON."""
    named: dict[str, Any] = msgspec.to_builtins(patch)
    return named


def view_of(view: type[msgspec.Struct], stored: Stored[Any]) -> msgspec.Struct:
    """The record as it is shown."""
    values = {
        name: getattr(stored.record if hasattr(stored.record, name) else stored, name)
        for name in view.__struct_fields__
    }
    return view(**values)


def stored_reply(view: type[msgspec.Struct], stored: Stored[Any]) -> Reply:
    """One control-plane record, as read or as a change left it."""
    shown_record = view_of(view, stored)
    return record_reply(shown_record, stored.etag, created=stored.created, replayed=stored.replayed)


class ControlList:
    """A list of the control plane: its window in, its page out, with cursors that fit this list alone."""

    def __init__(self, context: RequestContext, query: ListQuery, *names: str) -> None:
        self._cursors = Cursors(context.target_tenant_id, *names)
        self.limit = query.limit
        self.descending = query.order == "desc"
        self.after = None if query.after is None else self._cursors.key(_PREFIX, query.after)[len(_PREFIX) :]

    def reply(self, view: type[msgspec.Struct], listing: Listing[Any]) -> Reply:
        after = None if listing.after is None else self._cursors.of_key(_PREFIX, _PREFIX + listing.after)
        return json_reply(Page(tuple(view_of(view, stored) for stored in listing.items), after))


def repeats_path(call: Call, name: str, value: str | None) -> None:
    """A body may repeat what the path names. Raises ContextMismatch for another tenant, Invalid otherwise."""
    if value is not None and value != call.id(name):
        refuse = ContextMismatch if name in _IDENTITIES else Invalid
        raise refuse("the body and the path name different records", field=name)


def repeats_tenant(named: str | None, tenant_id: str) -> None:
    """A body may repeat the tenant that the request is about. Raises ContextMismatch for another one."""
    if named not in (None, tenant_id):
        raise ContextMismatch("the body names another tenant than the request's", field="tenant_id")
