"""Analytics for real on one `Home`: contracts and gates as a test says, and what is found in the lists.

Owns the small index by which few events fill several blocks, and what stands in for the stores above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from engines.core.idempotency import Request, identify
from engines.core.index import Layout
from engines.core.listing import Window
from engines.scope import RequestContext
from engines.stores.analytics import (
    Analytics,
    AnalyticsEvent,
    AnalyticsFilter,
    EventGate,
    GateStatus,
    Ingested,
    NewAnalyticsEvent,
)
from engines.stores.attribution import AttributionContract, ContractInForce, ContractRef
from engines.stores.events import EventSpine
from tests.stores.home import Home, context

SMALL = Layout(block=10, segment_blocks=3, shards=2)
WEB = {
    "platform": "web",
    "utm_template": {"utm_source": "newsletter", "utm_campaign": "{campaign}_{month}"},
    "allowed_fields": ["page_url", "payload.button"],
    "allowed_hosts": ["example.com"],
}


class Kept:
    """The contracts of one test, by platform."""

    def __init__(self) -> None:
        self.contracts: dict[str, ContractInForce] = {}
        self.asked: list[str] = []

    def put(self, blob: dict[str, Any], version: int = 1) -> None:
        contract = msgspec.convert(blob, AttributionContract)
        self.contracts[contract.platform] = ContractInForce(ContractRef("c", version), contract)

    async def contract_in_force(self, _: RequestContext, platform: str) -> ContractInForce | None:
        self.asked.append(platform)
        return self.contracts.get(platform)


FAILED = GateStatus(status="fail", gate="budget", reason_code="cost_not_told")


class Gates:
    """Gates that say what they were told to say, raise it, or never answer."""

    def __init__(self, says: GateStatus | Exception | None = None, *, hangs: bool = False) -> None:
        self.says = says
        self.hangs = hangs
        self.asked: list[tuple[int, Request | None]] = []
        self.came = asyncio.Event()

    async def judge(self, _: RequestContext, *, count: int, request: Request | None) -> GateStatus | None:
        self.asked.append((count, request))
        self.came.set()
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def gated(home: Home, spine: EventSpine, gate: EventGate) -> Analytics:
    return Analytics(home, spine, Kept(), home.clock, gate=gate)


def seen(number: int = 0, **fields: Any) -> NewAnalyticsEvent:
    return NewAnalyticsEvent(**{"event_type": "page_view", "payload": {"n": number}} | fields)


def keyed(key: str = "k", body: bytes = b"{}") -> Request:
    return identify("t_one", "prod", "ada", "POST", "/analytics/events", key, body=body)


async def collect(
    analytics: Analytics, where: AnalyticsFilter, *, limit: int = 100, descending: bool = False
) -> list[AnalyticsEvent]:
    found: list[AnalyticsEvent] = []
    after: str | None = None
    for _ in range(1_000):
        window = Window(limit=limit, after=after, descending=descending)
        page = await analytics.list(context(), where, window=window)
        found += page.items
        after = page.after
        if after is None:
            return found
    raise AssertionError("a list ends")


async def everything(analytics: Analytics) -> list[AnalyticsEvent]:
    return await collect(analytics, AnalyticsFilter(), limit=1_000)


def numbers(events: Sequence[AnalyticsEvent]) -> list[int]:
    return [event.payload["n"] for event in events if event.payload is not None]


def statuses(ingested: Ingested) -> list[int]:
    return [event.status for event in ingested.events]


async def project(analytics: Analytics) -> None:
    while await analytics._index.step(context()):
        pass
