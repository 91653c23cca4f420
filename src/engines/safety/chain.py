"""The chain: asking several gates in order, whatever may go wrong with one of them.

Owns the order, the time that the gates have, and that a gate which raises, hangs or is missing refuses.
Leaves which gates guard an action, and the record of the decision, to `safety/evaluations.py`.

The first gate that refuses decides, and none behind it is asked: nothing is taken of a budget or a quota for
an action that a gate before it refuses. None is asked beside another, since a gate mostly answers from what
its store read within the last second: a task for each would cost more than the gates themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from engines.errors import EnginesError, MissingRoute
from engines.safety.asks import Ask, Judged, Verdict
from engines.safety.gates import ConsumingGate, Gate, consumes
from engines.safety.reasons import ReasonCode

# The gates that are looked at before any other, in this order.
FIRST: Final = ("kill_switch", "firearms")
# What all gates of a chain together may take. Those of a warm process answer in a thousandth of it; a cold
# one has some ten round trips to a backend, one after the other.
GATES_TIMEOUT_S: Final = 4.0

log = structlog.get_logger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """What a chain says: the verdicts that were asked for, in order, and the one that decides."""

    judged: tuple[Judged, ...]
    took: tuple[ConsumingGate, ...] = ()

    @property
    def refusal(self) -> Judged | None:
        return next((one for one in self.judged if one.result == "block"), None)


async def judge_in_order(gates: Sequence[Gate], ask: Ask, *, timeout_s: float = GATES_TIMEOUT_S) -> Outcome:
    """Ask the gates until one refuses; together they have `timeout_s`. Raises nothing but cancellation.

    `took` are those that may have taken something, the one that failed half-way included.
    """
    judged: list[Judged] = []
    took: list[ConsumingGate] = []
    try:
        async with asyncio.timeout(timeout_s):
            for gate in gates:
                if consumes(gate) and not ask.dry_run:
                    took.append(gate)
                judged.append(_judged(gate, await _verdict(gate, ask)))
                if judged[-1].result == "block":
                    break
    except TimeoutError:
        # It is over while a gate is waited for, and that one has no verdict.
        late = _failed("gate_timeout", {"timeout_s": timeout_s})
        judged.append(_judged(gates[len(judged)], late))
    return Outcome(tuple(judged), tuple(took))


async def undo(gates: Sequence[ConsumingGate], ask: Ask, *, timeout_s: float = GATES_TIMEOUT_S) -> None:
    """Give back what was taken, as far as that succeeds; a reservation lapses by itself."""
    for gate in gates:
        try:
            async with asyncio.timeout(timeout_s):
                await gate.undo(ask)
        except Exception as error:  # noqa: BLE001 (whatever broke, the decision stands)
            log.warning("a gate did not give back what it took", gate=gate.name, error=type(error).__name__)


async def _verdict(gate: Gate, ask: Ask) -> Verdict:
    """What the gate says, or that it failed."""
    try:
        return await gate.judge(ask)
    except TimeoutError:
        return _failed("gate_timeout", {})
    except MissingRoute as error:
        return _failed("missing_route", {"resource_kind": error.resource_kind})
    except EnginesError as error:
        log.warning("a gate failed", gate=gate.name, error=error.code, request_id=ask.context.request_id)
        return _failed("gate_error", {"error": error.code, "detail": error.detail})
    except Exception as error:
        log.exception("a gate failed", gate=gate.name, request_id=ask.context.request_id)
        return _failed("gate_error", {"error": type(error).__name__})


def _failed(reason_code: ReasonCode, details: dict[str, object]) -> Verdict:
    return Verdict(result="block", reason_code=reason_code, gate_status="error", details=details)


def _judged(gate: Gate, verdict: Verdict) -> Judged:
    return Judged(
        gate=gate.name,
        result=verdict.result,
        reason_code=verdict.reason_code,
        gate_status=verdict.gate_status,
        details=verdict.details,
        inputs=verdict.inputs,
    )
