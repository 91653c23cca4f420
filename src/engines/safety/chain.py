"""The chain: asking several gates in order, whatever may go wrong with one of them.

Owns the order, what is asked at once, the time that a gate has, and that a gate which raises, hangs or is
missing refuses. Leaves which gates guard an action, and the record of the decision, to
`safety/evaluations.py`.

The first gate that refuses decides. The gates that must be first are asked one by one; those behind them that
only read are asked at once, up to the next one that consumes, which is asked alone: nothing is taken of a
budget or a quota for an action that a gate before it refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec
import structlog

from engines.errors import EnginesError, MissingRoute
from engines.safety.asks import Ask, Judged, Verdict
from engines.safety.gates import ConsumingGate, Gate, consumes
from engines.safety.reasons import ReasonCode

# The gates that are looked at before any other, in this order.
FIRST: Final = ("kill_switch", "firearms")
# What all gates of a chain together may take. Those of a warm process answer in a hundredth of it.
GATES_TIMEOUT_S: Final = 2.0

Stage: TypeAlias = tuple[Gate, ...]
"""Gates that may be asked at once."""

log = structlog.get_logger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """What a chain says: the verdicts that were asked for, in order, and the one that decides."""

    judged: tuple[Judged, ...]
    took: tuple[ConsumingGate, ...] = ()

    @property
    def refusal(self) -> Judged | None:
        return next((one for one in self.judged if one.result == "block"), None)


async def judge_in_order(stages: Sequence[Stage], ask: Ask, *, timeout_s: float = GATES_TIMEOUT_S) -> Outcome:
    """Ask the gates until one refuses; together they have `timeout_s`. Raises nothing but cancellation.

    `took` are those that may have taken something, the one that failed half-way included.
    """
    judged: list[Judged] = []
    took: list[ConsumingGate] = []
    asked: Stage = ()
    verdicts: dict[str, Verdict] = {}
    try:
        async with asyncio.timeout(timeout_s):
            for asked in stages:
                took += [gate for gate in asked if consumes(gate) and not ask.dry_run]
                await _ask(asked, ask, verdicts)
                judged += [_judged(gate, verdicts[gate.name]) for gate in asked]
                if any(verdicts[gate.name].result == "block" for gate in asked):
                    break
    except TimeoutError:
        # Every verdict may be in hand by now: those that pass came too late all the same, and the gates
        # behind them were never asked.
        late = _failed("gate_timeout", {"timeout_s": timeout_s})
        for gate in asked:
            verdict = verdicts.get(gate.name, late)
            judged.append(_judged(gate, verdict if verdict.result == "block" else late))
    return Outcome(tuple(judged), tuple(took))


def in_stages(gates: Iterable[Gate]) -> tuple[Stage, ...]:
    """The gates in order, in groups that may be asked at once."""
    stages: list[list[Gate]] = []
    is_reading = False
    for gate in gates:
        asked_alone = gate.name in FIRST or consumes(gate)
        if is_reading and not asked_alone:
            stages[-1].append(gate)
        else:
            stages.append([gate])
        is_reading = not asked_alone
    return tuple(map(tuple, stages))


async def undo(gates: Sequence[ConsumingGate], ask: Ask, *, timeout_s: float = GATES_TIMEOUT_S) -> None:
    """Give back what was taken, as far as that succeeds; a reservation lapses by itself."""
    for gate in gates:
        try:
            async with asyncio.timeout(timeout_s):
                await gate.undo(ask)
        except Exception as error:  # noqa: BLE001 (whatever broke, the decision stands)
            log.warning("a gate did not give back what it took", gate=gate.name, error=type(error).__name__)


async def _ask(gates: Stage, ask: Ask, verdicts: dict[str, Verdict]) -> None:
    """Have the verdicts of these gates, by name; of those that do not answer in time there is none."""
    if len(gates) == 1:
        verdicts[gates[0].name] = await _verdict(gates[0], ask)
        return

    async def one(gate: Gate) -> None:
        verdicts[gate.name] = await _verdict(gate, ask)

    await asyncio.gather(*map(one, gates))


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
