"""Moves over HTTP: a tenant's kind on its way from one backend to another."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply, record_reply
from engines.api.views import ControlList, ListQuery, Page, shown, stored_reply, view_of
from engines.control.records import Id, Move
from engines.routing.moves import Plan, Progress

router = Router("moves", is_limited=False)

MoveView = shown(Move, without=("options",))
MoveState: Any = msgspec.defstruct(
    "MoveState", [("progress", Progress)], bases=(MoveView,), frozen=True, kw_only=True
)
MoveState.__doc__ = "A move and how far it has come."


class MoveInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where all of a kind is to lie. `retire`: remove what is left behind; `dry_run`: only say it."""

    backend_id: Id
    retire: bool = False
    dry_run: bool = False


@router.post("/routes/{resource_kind}/move", body=MoveInput, reply=MoveView | Plan, statuses=(201, 200))
async def start_move(call: Call) -> Sendable:
    """Move a kind of the tenant that the request is about to another backend, while it is used.

    A server takes the move up at once; `GET /moves/{move_id}` tells how far it is. With `dry_run` the answer
    is a plan: which routes lead to what is there, and how much that is.
    """
    context = await call.context()
    body = await call.body(MoveInput)
    moves = call.engines.moves
    if body.dry_run:
        return json_reply(await moves.plan(context, call.id("resource_kind"), body.backend_id))
    stored = await moves.start(
        context,
        call.id("resource_kind"),
        body.backend_id,
        retire=body.retire,
        request=call.request(context),
    )
    return stored_reply(MoveView, stored)


@router.get("/moves", query=ListQuery, reply=Page[MoveView])  # type: ignore[valid-type]
async def list_moves(call: Call) -> Sendable:
    """The moves of the tenant that the request is about, by kind."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "moves")
    listing = await call.engines.moves.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(MoveView, listing)


@router.get("/moves/{move_id}", reply=MoveState, has_etag=True)
async def get_move(call: Call) -> Sendable:
    """A move and how far it has come."""
    stored, progress = await call.engines.moves.get(await call.context(), call.id("move_id"))
    values = msgspec.structs.asdict(view_of(MoveView, stored))
    return record_reply(MoveState(**values, progress=progress), stored.etag)


@router.post("/moves/{move_id}/cancel", reply=MoveView)
async def cancel_move(call: Call) -> Sendable:
    """Take a move back, which it can be until readers have changed sides."""
    context = await call.context()
    stored = await call.engines.moves.cancel(context, call.id("move_id"), request=call.request(context))
    return stored_reply(MoveView, stored)


@router.post("/moves/{move_id}/retire", reply=MoveView)
async def retire_move(call: Call) -> Sendable:
    """Remove for ever what a move that is done left behind."""
    context = await call.context()
    stored = await call.engines.moves.retire(context, call.id("move_id"), request=call.request(context))
    return stored_reply(MoveView, stored)
