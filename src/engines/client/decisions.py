"""What kinds of definition do beyond being definitions: deciding, measuring, reading, asking for approval.

Owns the verbs of single kinds. Leaves the calls that every kind has to `client/definitions.py`.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for changes OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from engines.client.calls import Calls, Condition, Order
from engines.client.definitions import Definitions
from engines.client.results import (
    Approval,
    Definition,
    KpiReading,
    LockReview,
    Measurement,
    Page,
    TemperatureReading,
)


class StrategyLocks(Definitions):
    """Strategy locks, and what people decide about them."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls, "strategy-locks")

    async def approve(
        self,
        lock_id: str,
        *,
        if_match: str,
        review: LockReview | None = None,
        note: str | None = None,
        idempotency_key: str | None = None,
    ) -> Definition:
        """Approve a draft in the version that was read, whose `etag` is `if_match`.

        Raises Forbidden (one's own), Conflict (no draft, or who proposed it was erased), PreconditionFailed
        (the lock changed since, or is gone).
        """
        return await self._decide("approve", lock_id, review, note, if_match, idempotency_key)

    async def reject(
        self,
        lock_id: str,
        *,
        if_match: str,
        review: LockReview | None = None,
        note: str | None = None,
        idempotency_key: str | None = None,
    ) -> Definition:
        """Reject a draft in the version that was read. Raises what `approve` does."""
        return await self._decide("reject", lock_id, review, note, if_match, idempotency_key)

    async def _decide(
        self,
        verb: str,
        lock_id: str,
        review: LockReview | None,
        note: str | None,
        if_match: str,
        idempotency_key: str | None,
    ) -> Definition:
        body: dict[str, Any] = {"review": review, "note": note}
        return await self._calls.change(
            Definition,
            "POST",
            *("strategy-locks", lock_id, verb),
            body={name: value for name, value in body.items() if value is not None},
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )


class Kpis(Definitions):
    """KPIs of the bound surface, their measurements and readings."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls, "kpis")

    async def measure(
        self,
        kpi_id: str,
        value: float,
        *,
        occurred_at: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Measurement:
        """Append a measurement. Raises NotFound (no such KPI), Invalid (no finite number)."""
        body: dict[str, Any] = {"value": value, "occurred_at": occurred_at, "labels": labels}
        return await self._calls.change(
            Measurement,
            "POST",
            *("kpis", kpi_id, "measurements"),
            body={name: given for name, given in body.items() if given is not None},
            idempotency_key=idempotency_key,
        )

    async def measurements(
        self, kpi_id: str, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[Measurement]:
        """One page of the measurements, by position. Raises NotFound."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Measurement, "kpis", kpi_id, "measurements", query=query)

    def each_measurement(
        self, kpi_id: str, *, order: Order | None = None
    ) -> AsyncGenerator[Measurement, None]:
        """Every measurement of a KPI."""
        return self._calls.each(Measurement, "kpis", kpi_id, "measurements", query={"order": order})

    async def reading(self, kpi_id: str) -> KpiReading:
        """What a KPI says now. Raises NotFound, TooLarge (a sum or mean over too many measurements)."""
        return await self._calls.get(KpiReading, "kpis", kpi_id, "reading")


class Temperature(Definitions):
    """A surface's floors, ceilings and weights, and what they make of its KPIs."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls, "temperature")

    async def reading(self, surface_id: str) -> TemperatureReading:
        """A surface's temperature now. Raises ContextMismatch (a surface that is not one's to name)."""
        return await self._calls.get(TemperatureReading, "temperature", surface_id, "reading")


class Approvals:
    """Requests for approval of something dangerous, and what people answer."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def request(
        self,
        action: str,
        subject: str,
        reason: str,
        *,
        class_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Approval:
        """Ask whether an action may happen once.

        Raises Invalid (the action is not dangerous), Conflict (the same waits, or has a yes that is not
        used).
        """
        body: dict[str, Any] = {
            "action": action,
            "subject": subject,
            "reason": reason,
            "class_id": class_id,
            "context": context,
            "ttl_seconds": ttl_seconds,
        }
        return await self._calls.change(
            Approval,
            "POST",
            "approvals",
            body={name: given for name, given in body.items() if given is not None},
            idempotency_key=idempotency_key,
        )

    async def get(self, approval_id: str) -> Approval:
        """One request. Raises NotFound."""
        return await self._calls.get(Approval, "approvals", approval_id)

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        status: str | None = None,
        requested_by: str | None = None,
    ) -> Page[Approval]:
        """One page, by creation; with a filter it may be short or empty and still have `after`."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "status": status,
            "requested_by": requested_by,
        }
        return await self._calls.page(Approval, "approvals", query=query)

    def each(
        self, *, order: Order | None = None, status: str | None = None, requested_by: str | None = None
    ) -> AsyncGenerator[Approval, None]:
        """Every request."""
        query = {"order": order, "status": status, "requested_by": requested_by}
        return self._calls.each(Approval, "approvals", query=query)

    async def answer(
        self,
        approval_id: str,
        answer: Literal["yes", "no"],
        *,
        note: str | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Approval:
        """Answer a request that waits.

        Raises Forbidden (one's own), NotFound, Conflict (answered, or expired), PreconditionFailed.
        """
        return await self._calls.change(
            Approval,
            "POST",
            *("approvals", approval_id, "answer"),
            body={"answer": answer} if note is None else {"answer": answer, "note": note},
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )
