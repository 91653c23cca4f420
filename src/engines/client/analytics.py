"""Analytics: events taken in item by item, found again, and links tagged for attribution.

Owns their paths, parameters and types. Leaves everything else to `client/calls.py`.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for `ingest` OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from engines.client.calls import Calls, Order
from engines.client.results import AnalyticsEvent, IndexStatus, Ingested, NewAnalyticsEvent, Page, TaggedLink
from engines.client.retry import Repeat


class Analytics:
    """The tenant's analytics events."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ingest(
        self, events: Sequence[NewAnalyticsEvent], *, idempotency_key: str | None = None
    ) -> Ingested:
        """Take in 1 to 1,000 events, each on its own: look at `refused`, and at the results one by one.

        Where none at all was taken in it raises what the first was refused for.
        """
        return await self._calls.change(
            Ingested,
            "POST",
            *("analytics", "events"),
            body={"events": events},
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        session_id: str | None = None,
        platform: str | None = None,
        surface_id: str | None = None,
        event_type: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Page[AnalyticsEvent]:
        """One page; it may be short or empty and still have `after`. Times are RFC 3339."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "session_id": session_id,
            "platform": platform,
            "surface_id": surface_id,
            "event_type": event_type,
            "since": since,
            "until": until,
        }
        return await self._calls.page(AnalyticsEvent, "analytics", "events", query=query)

    def each(
        self,
        *,
        after: str | None = None,
        order: Order | None = None,
        session_id: str | None = None,
        platform: str | None = None,
        surface_id: str | None = None,
        event_type: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> AsyncGenerator[AnalyticsEvent, None]:
        """Every event that the filters let through, up to the end as it stands when it is reached."""
        query = {
            "after": after,
            "order": order,
            "session_id": session_id,
            "platform": platform,
            "surface_id": surface_id,
            "event_type": event_type,
            "since": since,
            "until": until,
        }
        return self._calls.each(AnalyticsEvent, "analytics", "events", query=query)

    async def index(self) -> IndexStatus:
        """How far the index has come on the spine; what is behind it lists look through."""
        return await self._calls.get(IndexStatus, "analytics", "index")

    async def rebuild_index(self) -> IndexStatus:
        """Make the index anew, beside requests; lists stay complete and are slower meanwhile."""
        parts = ("analytics", "index", "rebuild")
        return await self._calls.change(IndexStatus, "POST", *parts, repeat=Repeat.READ)

    async def tag_link(
        self, url: str, platform: str, *, values: Mapping[str, str] | None = None
    ) -> TaggedLink:
        """The link as the platform's contract tags it; `values` are for the placeholders of its template.

        Raises Invalid: no contract in force, a host that it does not allow, what is no safe URL.
        """
        body = {"url": url, "platform": platform, "values": values or {}}
        return await self._calls.change(
            TaggedLink, "POST", "attribution", "tag-link", body=body, repeat=Repeat.READ
        )
