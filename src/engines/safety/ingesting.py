"""Analytics events before the gates: one decision about all the events of a request.

Owns the name of the action and how a decision is told as the `gate_status` of events. Leaves deciding and
recording to `safety/evaluations.py`, and keeping the events, whatever is said here, to `stores/analytics.py`.

What was decided here, and why:

- One decision a request. Gates judge by the caller's context and the action, and those are the same for each
  event of it; the `safety` event says how many there were.
- Nothing is said of cost, so that nothing is ever held of a budget for an event that is kept anyway: a rule
  that has the budget guard this action gets `cost_not_told`. A rate limit takes one unit a request.
- Under an Idempotency-Key the decision is the key's: an attempt that broke off after it gets the same one,
  and no second event. What was kept with the plan of a request is not asked for again at all.
- A decision that could not be recorded is raised, and what is raised becomes the status `error`.
"""

from __future__ import annotations

import hashlib
from typing import Final

from engines.core.idempotency import Request
from engines.core.keys import join
from engines.safety.asks import Decision, EvaluationInput
from engines.safety.evaluations import Gates
from engines.scope import RequestContext
from engines.stores.analytics import EventGate, GateStatus

INGEST: Final = "analytics.ingest"


class IngestGate(EventGate):
    """The gate chain as analytics asks it."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates

    async def judge(
        self, context: RequestContext, *, count: int, request: Request | None
    ) -> GateStatus | None:
        evaluation = EvaluationInput(action=INGEST, details={"events": count})
        decided = await self._gates.decide_if_guarded(context, evaluation, request=_own(request))
        return None if decided is None else _status_of(decided.answer)


def _own(request: Request | None) -> Request | None:
    """The decision's own request: what is appended under the ingest's is its events."""
    if request is None:
        return None
    key = hashlib.sha256(f"{request.key} gates".encode()).hexdigest()
    return Request(join("k", key[:40]), request.digest)


def _status_of(decision: Decision) -> GateStatus:
    if decision.decision == "pass":
        return GateStatus(status="pass")
    if decision.gate_status == "ok":
        return GateStatus(status="fail", gate=decision.gate, reason_code=decision.reason_code)
    return GateStatus(
        status="error",
        gate=decision.gate,
        reason_code=decision.reason_code,
        error=decision.details.get("error", decision.reason_code),
    )
