"""Tables over HTTP: rows of JSON by table, partition key and sort key."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.tables import TableRow, TableRowInput

router = Router("tables")
ROW = "/tables/{table}/{pk}/{sk}"


@router.get("/tables/{table}/{pk}", query=ListQuery, reply=Page[TableRow])
async def list_rows(call: Call) -> Sendable:
    """The rows of one partition key, by sort key."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.tables.list(context, call.id("table"), call.id("pk"), window=window))


@router.get(ROW, reply=TableRow, has_etag=True)
async def get_row(call: Call) -> Sendable:
    """One row."""
    row = await call.engines.tables.get(await call.context(), *_names(call))
    return record_reply(row, row.etag)


@router.put(ROW, body=TableRowInput, reply=TableRow, has_etag=True, is_stored_whole=True)
async def put_row(call: Call) -> Sendable:
    """Create or replace a row."""
    context = await call.context()
    row = await call.body(TableRowInput)
    change = await call.engines.tables.put(
        context, *_names(call), row, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.delete(ROW)
async def delete_row(call: Call) -> Sendable:
    """Delete a row."""
    context = await call.context()
    deletion = await call.engines.tables.delete(
        context, *_names(call), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=deletion.replayed)


def _names(call: Call) -> tuple[str, str, str]:
    return call.id("table"), call.id("pk"), call.id("sk")
