"""Analytics and attribution over HTTP, and the beacon that pages send.

A page can send neither a header of its own nor a secret: `navigator.sendBeacon` posts text, and whoever sees
the page sees its address. So the beacon has a key in the query that is meant to be seen, of the role
`beacon`, which may send beacons and nothing else, and only from the origins that stand in the key's record.
Those are what CORS is answered for. Cookies mean nothing here; browsers send a beacon as if they might, and
want to be told that they may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engines.api.call import Call
from engines.api.complaints import invalid
from engines.api.endpoint import Router, Sendable
from engines.api.reply import PROBLEM, PROBLEM_TYPE_PREFIX, HeaderFields, Problem, Reply, json_reply, title_of
from engines.api.views import ListQuery, Page, page_reply
from engines.errors import EnginesError, Forbidden
from engines.identity.keys import parse_key
from engines.identity.tokens import unauthenticated
from engines.scope import RequestContext
from engines.stores.analytics import (
    AnalyticsEvent,
    AnalyticsFilter,
    DecodedEvent,
    Ingested,
    IngestedEvent,
    LinkToTag,
    NewAnalyticsEvent,
    TaggedLink,
)
from engines.stores.events import IndexStatus

router = Router("analytics")

BEACON: Final = "/analytics/beacon"
BEACON_ROUTE: Final = f"POST {BEACON}"
# What browsers let a page have under way in beacons (Fetch, section 4.6: keepalive requests, 64 KiB).
BEACON_BYTES_MAX: Final = 64 * 1024
BEACON_MEDIA_TYPES: Final = ("text/plain", "application/json")
PREFLIGHT_MAX_AGE_S: Final = 600
_NAMED: Final = ("env", "surface_id", "app_id", "project_id")
_encode: Final = msgspec.json.Encoder().encode


class NewAnalyticsEvents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body for several events, at most 1,000; each is taken in or refused on its own."""

    events: list[NewAnalyticsEvent]


class _Items(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same before its events are looked at: one that is malformed is refused alone."""

    events: list[Any]


class IngestedView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of each event, in the order of the request, and how many there are of either kind."""

    events: tuple[IngestedEvent, ...]
    accepted: int
    refused: int


class AnalyticsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list of events, and what to leave out of it. `since` <= timestamp < `until`."""

    session_id: str | None = None
    platform: str | None = None
    surface_id: str | None = None
    event_type: str | None = None
    since: str | None = None
    until: str | None = None


class BeaconQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The publishable key, and where in the product the page is, as headers say it elsewhere."""

    key: str | None = None
    env: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None


def _one_or_many(value: Any) -> Any:
    """A body is one event, or `{"events": [...]}`."""
    return _Items if isinstance(value, dict) and "events" in value else dict[str, Any]


@router.post(
    "/analytics/events",
    body=NewAnalyticsEvent | NewAnalyticsEvents,
    type_of=_one_or_many,
    reply=IngestedView,
    statuses=(201,),
)
async def ingest_events(call: Call) -> Sendable:
    """Take in one event or up to 1,000, each on its own.

    201 where at least one stands on the spine; each result has its own status. Where all were refused, the
    first one's problem.
    """
    context = await call.context()
    body = await call.any_body()
    ingested = await call.engines.analytics.ingest(context, _events(body), request=call.request(context))
    if not ingested.accepted:
        return _refused(call, ingested, is_list=isinstance(body, _Items))
    view = IngestedView(ingested.events, ingested.accepted, ingested.refused)
    return json_reply(view, status=201, replayed=ingested.replayed)


@router.get("/analytics/events", query=AnalyticsQuery, reply=Page[AnalyticsEvent])
async def list_analytics(call: Call) -> Sendable:
    """Analytics events, by position."""
    query = call.query(AnalyticsQuery)
    where = AnalyticsFilter(
        query.session_id, query.platform, query.surface_id, query.event_type, query.since, query.until
    )
    return page_reply(await call.engines.analytics.list(await call.context(), where, window=query.window()))


@router.get("/analytics/index", reply=IndexStatus)
async def get_analytics_index(call: Call) -> Sendable:
    """How far the index of analytics events has come on the spine; what is behind it lists look through."""
    return json_reply(await call.engines.analytics.index_status(await call.context()))


@router.post("/analytics/index/rebuild", reply=IndexStatus, is_idempotent=False)
async def rebuild_analytics_index(call: Call) -> Sendable:
    """Make the index of analytics events anew, beside requests; lists stay complete, slower meanwhile."""
    return json_reply(await call.engines.analytics.rebuild_index(await call.context()))


@router.post("/attribution/tag-link", body=LinkToTag, reply=TaggedLink, is_idempotent=False)
async def tag_link(call: Call) -> Sendable:
    """Tag a link by the attribution contract in force for a platform. Nothing is stored."""
    context = await call.context()
    return json_reply(await call.engines.analytics.tag_link(context, await call.body(LinkToTag)))


# --- the beacon ---


@router.post(
    BEACON,
    body=NewAnalyticsEvent | NewAnalyticsEvents,
    type_of=_one_or_many,
    query=BeaconQuery,
    statuses=(204, 401, 403),
    access="public",
    is_idempotent=False,
    accepts=BEACON_MEDIA_TYPES,
    body_bytes_max=BEACON_BYTES_MAX,
)
async def send_beacon(call: Call) -> Sendable:
    """Take in events that a page sends, with a publishable key from one of its origins.

    The key stands in the query; the body is JSON, as text or as such. Events are taken in each on its own.
    """
    context, origin = await _publisher(call)
    body = await call.any_body()
    ingested = await call.engines.analytics.ingest_beacon(context, _events(body))
    if not ingested.accepted:
        return _refused(call, ingested, is_list=isinstance(body, _Items), fields=_cors(origin))
    return Reply(204, fields=_cors(origin))


@router.add(
    "OPTIONS", BEACON, query=BeaconQuery, statuses=(204, 401, 403), access="public", is_idempotent=False
)
async def preflight_beacon(call: Call) -> Sendable:
    """Tell a browser whether a page may send beacons."""
    _, origin = await _publisher(call)
    fields = (
        *_cors(origin),
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", b"content-type"),
        (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
    )
    return Reply(204, fields=fields)


async def _publisher(call: Call) -> tuple[RequestContext, str]:
    """Whom the key stands for, and the origin. Raises Unauthenticated, Forbidden and as `Call.context`."""
    query = call.query(BeaconQuery)
    parsed = None if query.key is None else parse_key(query.key)
    if query.key is None or parsed is None:
        raise unauthenticated()
    named = {name: value for name in _NAMED if (value := getattr(query, name)) is not None}
    context = await call.published_context(query.key, named)
    record = await call.engines.directory.api_key(parsed[0])
    origin = call.fields.get(b"origin")
    if origin is None or record is None or origin not in record.origins:
        raise Forbidden("the key is not for pages of this origin", field="Origin")
    if call.scope["method"] == "POST":
        (await call.engines.rate_limits.admit(context, BEACON_ROUTE)).check()
    return context, origin


def _cors(origin: str) -> HeaderFields:
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"origin"),
    )


# --- both ---


def _events(body: Any) -> Sequence[NewAnalyticsEvent | EnginesError]:
    return events_of(body.events if isinstance(body, _Items) else [body])


def events_of(items: Sequence[Any]) -> Sequence[NewAnalyticsEvent | EnginesError]:
    """Each event of a body that was decoded as JSON, or why it is none."""
    try:
        # All are well as a rule, and at once it takes less time than one by one.
        return msgspec.convert(items, list[DecodedEvent])
    except msgspec.ValidationError:
        return [_event_of(item) for item in items]


def _event_of(item: Any) -> NewAnalyticsEvent | EnginesError:
    try:
        return msgspec.convert(item, DecodedEvent)
    except msgspec.ValidationError as error:
        return invalid(error, DecodedEvent)


def _refused(call: Call, ingested: Ingested, *, is_list: bool, fields: HeaderFields = ()) -> Reply:
    """Nothing was taken in: the problem of the first event."""
    first = ingested.events[0]
    assert first.problem is not None
    field = first.problem.field
    if is_list:
        field = f"events[0].{field}" if field else "events[0]"
    problem = Problem(
        kind=PROBLEM_TYPE_PREFIX + first.problem.code,
        title=title_of(first.problem.code),
        status=first.status,
        detail=first.problem.detail,
        code=first.problem.code,
        request_id=call.request_id,
        field=field,
    )
    return Reply(first.status, _encode(problem), (PROBLEM, *fields))
