"""Telemetry: the tokens that a user's agents take from models, counted by day, session and model.

Owns one document a day and session, `c!{user}!{day}!{session or -}`, anchored at the user, in which each
model has its counters, and what is read out of them. A count is added under the condition that the document
is as it was read, so none is lost; without an Idempotency-Key a repeat counts twice. Days are UTC's and the
server's.

Leaves what tokens cost, and whether they may be taken, to the budget, and single calls to traces and the
spine. Deleting a session leaves its counters, which say nothing of what was said.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from datetime import date
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import Codec
from engines.core import records
from engines.core.idempotency import Request
from engines.core.keys import NO_PROJECT, join, record_key, within
from engines.core.listing import LOOKED_AT_MAX, SCANS_MAX
from engines.core.place import Places
from engines.core.records import Draft
from engines.errors import Conflict, Invalid
from engines.ports.documents import GET_KEYS_MAX, SCAN_LIMIT_MAX, Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, IdentityFields, Stamped, check_body, stamp, with_etag

READ: Final = "telemetry.read"
WRITE: Final = "telemetry.write"

COUNT_MAX: Final = 10**9
NAME_CHARS_MAX: Final = 128
# Of one session and day: the names come from clients, and one document holds them all.
MODELS_MAX: Final = 100
DAYS_DEFAULT: Final = 30
DAYS_MAX: Final = 366
NO_SESSION: Final = NO_PROJECT

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Calls = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
By = Literal["model", "session", "day"]


class TokensInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one or several calls of a model took. `tokens_cached` is the part of `tokens_in` read from a
    cache.

    Without `session_id` it is counted for the request's session, if one is bound.
    """

    provider: Name
    model: Name
    tokens_in: Count = 0
    tokens_out: Count = 0
    tokens_cached: Count = 0
    calls: Calls = 1
    session_id: str | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of counts."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0

    def plus(self, other: Tokens | TokensInput) -> Tokens:
        return Tokens(
            calls=self.calls + other.calls,
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            tokens_cached=self.tokens_cached + other.tokens_cached,
        )


class ModelTokens(Tokens, frozen=True, kw_only=True):
    """What was taken from one model."""

    provider: str
    model: str


class SessionDay(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """The counters of one session and day, as they are stored and shown."""

    day: str
    session_id: str | None = None
    models: list[ModelTokens]
    updated_at: str


class TokensQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which days to add up, both included; without them the last thirty."""

    since: str | None = None
    until: str | None = None
    session_id: str | None = None
    by: By = "model"


class Group(Tokens, frozen=True, kw_only=True):
    """What belongs together by the query's `by`, whose names alone are there; every sum is, also a zero.

    `session_id` is null for what was of no session.
    """

    provider: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    session_id: str | UnsetType | None = UNSET
    day: str | UnsetType = UNSET


class TokenReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over whole days, and the same by model, session or day."""

    since: str
    until: str
    total: Tokens
    by: By
    groups: tuple[Group, ...]


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="session-day/1"):
    record: SessionDay


_CODEC: Final = Codec(_Stored)


class Telemetry:
    """The counters of whoever asks. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown.
    """

    def __init__(self, places: Places, clock: Clock) -> None:
        self._places = places
        self._clock = clock

    async def count(
        self, context: RequestContext, tokens: TokensInput, *, request: Request | None = None
    ) -> Change[SessionDay]:
        """Add to today's counters of the session. One read and one write.

        Raises Invalid, IdempotencyKeyReused, Conflict (the session has too many models today; too many others
        counted at the same time).
        """
        context.require_data(WRITE)
        tokens = check_body(context, tokens)
        if tokens.tokens_cached > tokens.tokens_in:
            raise Invalid("what is read from a cache is a part of what goes in", field="tokens_cached")
        session_id = context.session_id if tokens.session_id is None else tokens.session_id
        if session_id is not None:
            check_id(session_id, "session_id")
        now = timestamp(self._clock.now())
        day = now[:10]
        async with self._places.changing(catalogue.TELEMETRY, context) as place:
            written = await records.replace(
                place.documents,
                await place.partition(context.user_id),
                _key(context, day, session_id or NO_SESSION),
                lambda doc: _added(context, tokens, doc, day=day, session_id=session_id, now=now),
                request=request,
            )
        return Change(_shown(written.doc), written.created, written.replayed)

    async def report(self, context: RequestContext, query: TokensQuery) -> TokenReport:
        """Sums over days. One read for some thousand sessions and days; of one session, for a hundred days.

        Raises Invalid for days that are none, end before they begin or are too many, and where more counters
        would have to be read than a list reads at once.
        """
        context.require_data(READ)
        since, until = self._days(query)
        pages = (
            self._all(context, since, until)
            if query.session_id is None
            else self._of_session(context, since, until, check_id(query.session_id, "session_id"))
        )
        groups: dict[Group, Tokens] = {}
        # Page by page, of about 1 MiB each: others of this process go on between two of them.
        async for page in pages:
            for day in page:
                for model in day.models:
                    key = _group(day, model, query.by)
                    groups[key] = groups.get(key, Tokens()).plus(model)
        return TokenReport(
            since=since.isoformat(),
            until=until.isoformat(),
            total=_sum(groups.values()),
            by=query.by,
            groups=tuple(
                msgspec.structs.replace(key, **msgspec.structs.asdict(groups[key]))
                for key in sorted(groups, key=_order)
            ),
        )

    async def _all(
        self, context: RequestContext, since: date, until: date
    ) -> AsyncGenerator[list[SessionDay], None]:
        place = await self._places.place(catalogue.TELEMETRY, context)
        partition = await place.partition(context.user_id)
        above = join("c", context.user_id, since.isoformat())
        below = within("c", context.user_id, until.isoformat())[1]
        looked_at = 0
        for _ in range(SCANS_MAX):
            page = await place.documents.scan(partition, above=above, below=below, limit=SCAN_LIMIT_MAX)
            yield [_shown(doc) for doc in page.docs]
            if page.resume is None:
                return
            above = page.resume
            looked_at += len(page.docs)
            if looked_at >= LOOKED_AT_MAX:
                break
        raise Invalid("too many counters to read at once: ask for fewer days or one session", field="since")

    async def _of_session(
        self, context: RequestContext, since: date, until: date, session_id: str
    ) -> AsyncGenerator[list[SessionDay], None]:
        place = await self._places.place(catalogue.TELEMETRY, context)
        partition = await place.partition(context.user_id)
        days = [date.fromordinal(day).isoformat() for day in range(since.toordinal(), until.toordinal() + 1)]
        keys = [_key(context, day, session_id) for day in days]
        for first in range(0, len(keys), GET_KEYS_MAX):
            found = await place.documents.get_many(partition, keys[first : first + GET_KEYS_MAX])
            yield [_shown(doc) for doc in found.values()]

    def _days(self, query: TokensQuery) -> tuple[date, date]:
        today = date.fromisoformat(timestamp(self._clock.now())[:10])
        until = today if query.until is None else _day(query.until, "until")
        if query.since is None:
            since = date.fromordinal(max(1, until.toordinal() - DAYS_DEFAULT + 1))
        else:
            since = _day(query.since, "since")
        if since > until:
            raise Invalid("it ends before it begins", field="until")
        if (until - since).days >= DAYS_MAX:
            raise Invalid(f"at most {DAYS_MAX} days", field="since")
        return since, until


def _key(context: RequestContext, day: str, session: str) -> str:
    return record_key("c", context.user_id, day, session)


def _added(
    context: RequestContext,
    tokens: TokensInput,
    doc: Doc | None,
    *,
    day: str,
    session_id: str | None,
    now: str,
) -> Draft:
    counted = [] if doc is None else _shown(doc).models
    names = (tokens.provider, tokens.model)
    before = next((model for model in counted if (model.provider, model.model) == names), None)
    if before is None and len(counted) >= MODELS_MAX:
        raise Conflict(f"a session counts at most {MODELS_MAX} models a day")
    sums = (before or Tokens()).plus(tokens)
    after = ModelTokens(provider=names[0], model=names[1], **msgspec.structs.asdict(sums))
    models = [after if model is before else model for model in counted]
    record = SessionDay(
        **stamp(context),
        day=day,
        session_id=session_id,
        models=models if before is not None else [*models, after],
        updated_at=now,
    )
    return Draft(_CODEC.encode(_Stored(record)))


def _group(day: SessionDay, model: ModelTokens, by: By) -> Group:
    if by == "model":
        return Group(provider=model.provider, model=model.model)
    return Group(session_id=day.session_id) if by == "session" else Group(day=day.day)


def _order(group: Group) -> tuple[str, ...]:
    return tuple(name or "" for name in (group.day, group.session_id, group.provider, group.model))


def _sum(parts: Iterable[Tokens]) -> Tokens:
    total = Tokens()
    for part in parts:
        total = total.plus(part)
    return total


def _day(text: str, field: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise Invalid("a day is written as 2026-11-21", field=field)
    return day


def _shown(doc: Doc) -> SessionDay:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
