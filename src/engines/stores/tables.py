"""Tables: rows of JSON under a partition key and a sort key, shared by a tenant.

Owns rows and their keys `t!{table}!{pk}!{sk}`, anchored at table and pk, so that one pk is one ordered list.
Leaves what a table means to whoever names it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import join, record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, Deletion, IdentityFields, Stamped, check_body, stamp, with_etag


class TableRowInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT."""

    value: Any


class TableRow(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A row as it is stored and shown; the identity on it is its last writer's."""

    table: str
    pk: str
    sk: str
    value: Any
    created_at: str
    updated_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="row/1"):
    record: TableRow


_CODEC: Final = Codec(_Stored)


class Tables:
    """The tables of a tenant and env.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown.
    """

    def __init__(self, places: Places, clock: Clock) -> None:
        self._places = places
        self._clock = clock

    async def get(self, context: RequestContext, table: str, pk: str, sk: str) -> TableRow:
        """One read. Raises NotFound."""
        context.require_data("tables.read")
        key = _key(table, pk, sk)
        place = await self._places.place(catalogue.TABLES, context)
        doc = await place.documents.get(await place.partition(join(table, pk)), key)
        if doc is None:
            raise NotFound("there is no such row")
        return _shown(doc)

    async def put(
        self,
        context: RequestContext,
        table: str,
        pk: str,
        sk: str,
        row: TableRowInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[TableRow]:
        """Create or replace, the last writer wins unless `condition` says otherwise.

        Raises Invalid, PreconditionFailed, TooLarge, IdempotencyKeyReused, Conflict.
        """
        context.require_data("tables.write")
        key = _key(table, pk, sk)
        row = check_body(context, row)
        check_json_value(row.value, "value")
        now = timestamp(self._clock.now())

        def build(doc: Doc | None) -> Draft:
            record = TableRow(
                **stamp(context),
                table=table,
                pk=pk,
                sk=sk,
                value=row.value,
                created_at=now if doc is None else _shown(doc).created_at,
                updated_at=now,
            )
            return Draft(_CODEC.encode(_Stored(record)))

        async with self._places.changing(catalogue.TABLES, context) as place:
            partition = await place.partition(join(table, pk))
            written = await records.replace(
                place.documents, partition, key, build, condition=condition, request=request
            )
        return Change(_shown(written.doc), written.created, written.replayed)

    async def delete(
        self,
        context: RequestContext,
        table: str,
        pk: str,
        sk: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Raises NotFound, PreconditionFailed, IdempotencyKeyReused, Conflict."""
        context.require_data("tables.write")
        key = _key(table, pk, sk)
        async with self._places.changing(catalogue.TABLES, context) as place:
            partition = await place.partition(join(table, pk))
            replayed = await records.remove(
                place.documents, partition, key, condition=condition, request=request
            )
        return Deletion(replayed)

    async def list(
        self, context: RequestContext, table: str, pk: str, *, window: Window = START
    ) -> Listed[TableRow]:
        """The rows of one pk, by sk. Raises Invalid (a limit or a cursor)."""
        context.require_data("tables.read")
        names = (check_id(table, "table"), check_id(pk, "pk"))
        place = await self._places.place(catalogue.TABLES, context)
        return await list_records(
            place.documents,
            await place.partition(join(table, pk)),
            ("t", *names),
            _shown,
            cursors=list_scope(catalogue.TABLES, context.tenant_id, context.env, *names),
            window=window,
        )


def _key(table: str, pk: str, sk: str) -> str:
    return record_key("t", check_id(table, "table"), check_id(pk, "pk"), check_id(sk, "sk"))


def _shown(doc: Doc) -> TableRow:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
