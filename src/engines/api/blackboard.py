"""The blackboard over HTTP: a run's shared state, with every version that is kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.blackboard import BlackboardEntry, BlackboardInput

router = Router("blackboard")
ENTRY = "/blackboard/{run_id}/{key}"


class VersionQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which version; the present one where it is left out."""

    version: Annotated[int, Meta(ge=1)] | None = None


@router.get("/blackboard/{run_id}", query=ListQuery, reply=Page[BlackboardEntry])
async def list_blackboard(call: Call) -> Sendable:
    """The present entries of a run, by key."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.blackboard.list(context, call.id("run_id"), window=window))


@router.get(ENTRY, query=VersionQuery, reply=BlackboardEntry, has_etag=True)
async def get_blackboard(call: Call) -> Sendable:
    """The present entry, or a version of it that is kept."""
    version = call.query(VersionQuery).version
    context = await call.context()
    entry = await call.engines.blackboard.get(context, call.id("run_id"), call.id("key"), version=version)
    return record_reply(entry, entry.etag)


@router.put(
    ENTRY,
    body=BlackboardInput,
    reply=BlackboardEntry,
    has_etag=True,
    conditions="required",
    is_stored_whole=True,
)
async def put_blackboard(call: Call) -> Sendable:
    """Write the next version of an entry, having said which one it follows."""
    context = await call.context()
    entry = await call.body(BlackboardInput)
    change = await call.engines.blackboard.put(
        context,
        call.id("run_id"),
        call.id("key"),
        entry,
        condition=call.condition(),
        request=call.request(context),
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.get("/blackboard/{run_id}/{key}/versions", query=ListQuery, reply=Page[BlackboardEntry])
async def list_blackboard_versions(call: Call) -> Sendable:
    """The versions of an entry that are kept, by number."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(
        await call.engines.blackboard.versions(context, call.id("run_id"), call.id("key"), window=window)
    )
