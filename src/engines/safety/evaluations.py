"""Evaluations: may this action happen, decided and recorded before anybody is told.

Owns which gates guard an action, the `safety` event of each decision, answers to repeats, and the guard of
our own routes. Leaves asking the gates to `safety/chain.py`, switches and configuration to
`control/gates.py`.

What was decided here, and why:

- The kill switch and firearms, the base gates, guard every action and no configuration takes them away: a
  rule that forgets a dangerous action must not disarm it. They come first, in this order, whatever a rule
  says.
- An action that no rule names meets the base gates alone, and passes where nobody switched it off and no
  binding calls it dangerous; a surface whose configuration says `"otherwise": "block"` refuses it instead
  (`no_rule`).
- Of the rules that name an action the most specific holds, so that a wide rule hides none behind it.
- A gate that raises, hangs or is not mounted refuses, with `gate_status: error`, and that is recorded too.
- Each decision is one event, written before the answer. If it cannot be written nothing was decided: the
  error says so with `decision: block`, and no `pass` is ever told that does not stand on the spine. The
  converse may happen: an event that nobody was answered with.
- The kill switch is looked at first and, if the control plane changed meanwhile, once more when all have
  passed.
- Under an Idempotency-Key a repeat is answered with the first decision, whatever has changed since: a key
  stands for one attempt at one action. What a gate takes, it takes under a name made of the key, so once.
- An evaluation runs to its end though its caller goes away, so nothing is left half-taken; every step of it
  has a time limit.
- A call of ours is judged where a rule names its action, a switch covers it, or its surface refuses what no
  rule names. Elsewhere nothing is evaluated and no event written: reads and writes of records are not worth
  one. A repeat of a guarded request is judged anew, even under its Idempotency-Key: a pass of yesterday opens
  nothing today.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from engines.clock import Clock
from engines.control.directory import Directory
from engines.control.records import GateConfig, KillSwitch
from engines.core.idempotency import Request
from engines.errors import (
    BackendRefused,
    Conflict,
    Corrupt,
    EnginesError,
    ForbiddenBackendClass,
    GateDenied,
    MissingRoute,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ids import Ids
from engines.safety.asks import (
    SUBJECT_CHARS_MAX,
    Ask,
    Decided,
    Decision,
    EvaluationInput,
    SafetyPayload,
    Verdict,
    caused,
    checked,
    decision_of,
    recorded_decision,
)
from engines.safety.chain import FIRST, GATES_TIMEOUT_S, Outcome, judge_in_order, undo
from engines.safety.gates import CONFIG, ConsumingGate, Gate, KillSwitchGate, Refusing, consumes
from engines.safety.judging import judge_kill_switch, rule_for
from engines.safety.reasons import REASONS
from engines.scope import RequestContext
from engines.stores.events import EventSpine, SystemEvent

EVENT_TYPE: Final = "safety"
KILL_SWITCH: Final = "kill_switch"
EVALUATE: Final = "gates.evaluate"
EXPLAIN: Final = "gates.explain"
# Past this they are all forgotten: whoever asks about names of their own invention costs others a look-up.
PLANS_MAX: Final = 10_000

T = TypeVar("T")


class _Plan(msgspec.Struct, frozen=True):
    """What guards an action on a surface, the kill switch first. `guards`: a call of ours is to be judged."""

    gates: tuple[Gate, ...]
    consuming: tuple[ConsumingGate, ...]
    guards: bool


class Gates:
    """The gate chain. Any number of concurrent calls on one event loop.

    Every method raises, where a decision could not be recorded, MissingRoute, Unavailable, OutcomeUnknown or
    BackendRefused, each with `decision` "block".
    """

    def __init__(
        self,
        directory: Directory,
        spine: EventSpine,
        ids: Ids,
        clock: Clock,
        *,
        gates: Sequence[Gate] = (),
        timeout_s: float = GATES_TIMEOUT_S,
    ) -> None:
        """`gates`: those whose stores are mounted, beside the kill switch; together they have `timeout_s`."""
        self._directory = directory
        self._spine = spine
        self._ids = ids
        self._clock = clock
        self._gates = {gate.name: gate for gate in gates}
        self._timeout_s = timeout_s
        self._plans: dict[tuple[str, str, str], _Plan] = {}
        self._generation = -1
        self._under_way: set[asyncio.Task[Any]] = set()
        assert len(self._gates) == len(gates), "one gate of each name"

    @property
    def mounted(self) -> frozenset[str]:
        """The gates that a rule may name."""
        return frozenset((KILL_SWITCH, *self._gates))

    async def evaluate(
        self,
        context: RequestContext,
        evaluation: EvaluationInput,
        *,
        explain: bool = False,
        request: Request | None = None,
    ) -> Decided:
        """Decide whether an action may happen, and record it. One append and what the gates read.

        Raises Forbidden, ContextMismatch, Invalid, TooLarge, IdempotencyKeyReused, Conflict (the first answer
        was redacted); then nothing is recorded.
        """
        context.require_data(EVALUATE)
        if explain:
            context.require(EXPLAIN)
        evaluation = checked(context, evaluation)
        return await self._to_its_end(self._decide(context, evaluation, explain=explain, request=request))

    async def guard(self, context: RequestContext, action: str, *, subject: str) -> None:
        """Let a call of ours go on, or not. Nothing is evaluated where nothing guards the action.

        Raises GateDenied, and MissingRoute where that is what the gate that refuses lacks.
        """
        evaluation = EvaluationInput(action=action, subject=subject[:SUBJECT_CHARS_MAX])
        decided = await self.decide_if_guarded(context, evaluation)
        if decided is not None and not decided.passed:
            raise _denial(decided.answer)

    async def decide_if_guarded(
        self, context: RequestContext, evaluation: EvaluationInput, *, request: Request | None = None
    ) -> Decided | None:
        """Decide about a call of ours, and record it; None, and no event, where nothing guards the action.

        The evaluation is one that we made: nothing in it is looked at again. Raises IdempotencyKeyReused,
        Conflict (the first answer was redacted).
        """
        with _undecided():
            if not (await self._plan(context, evaluation.action)).guards:
                return None
        return await self._to_its_end(self._decide(context, evaluation, request=request))

    async def close(self) -> None:
        """Wait for the evaluations that are under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    # --- deciding ---

    async def _decide(
        self,
        context: RequestContext,
        evaluation: EvaluationInput,
        *,
        explain: bool = False,
        request: Request | None = None,
    ) -> Decided:
        with _undecided():
            ask = self._ask(context, evaluation, request)
            generation = self._directory.generation
            plan = await self._plan(context, evaluation.action)
            if request is not None and not ask.dry_run and plan.consuming:
                first = await self._first_decision(context, request)
                if first is not None:
                    if not first.passed:  # Its reply may have been lost before what it took was given back.
                        await undo(plan.consuming, ask, timeout_s=self._timeout_s)
                    return first
            outcome = await judge_in_order(plan.gates, ask, timeout_s=self._timeout_s)
            # What stands under the key is not known yet: another attempt may need what was taken, and if
            # none does it lapses.
            keeps = request is not None
            try:
                outcome = await self._looked_again(ask, outcome, generation)
                decided = await self._recorded(ask, evaluation, outcome, explain=explain, request=request)
                keeps = decided.passed
                return decided
            finally:
                if not keeps:
                    await undo(outcome.took, ask, timeout_s=self._timeout_s)

    def _ask(self, context: RequestContext, evaluation: EvaluationInput, request: Request | None) -> Ask:
        if request is None:
            evaluation_id = self._ids.record_id()
        else:
            evaluation_id = request.key.rpartition("!")[2] + request.digest[:24]
        return Ask(
            context=context,
            action=evaluation.action,
            subject=evaluation.subject or context.user_id,
            cost=evaluation.cost,
            dry_run=evaluation.dry_run,
            evaluation_id=evaluation_id,
            at_s=self._clock.now(),
        )

    async def _plan(self, context: RequestContext, action: str) -> _Plan:
        """What guards the action, remembered until the control plane changes.

        Raises Unavailable where this process may be out of date.
        """
        self._directory.check_fresh()
        generation = self._directory.generation
        if self._generation != generation:
            self._plans.clear()
            self._generation = generation
        key = (context.tenant_id, context.surface_id, action)
        plan = self._plans.get(key)
        if plan is None:
            config = await self._directory.gate_config(context.tenant_id, context.surface_id)
            switches = await self._directory.kill_switches(context.tenant_id)
            plan = self._planned(config, switches, context.surface_id, action)
            if generation == self._directory.generation:
                if len(self._plans) >= PLANS_MAX:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _planned(
        self, config: GateConfig | None, switches: Sequence[KillSwitch], surface_id: str, action: str
    ) -> _Plan:
        rule = rule_for(config, action)
        gates: list[Gate] = [KillSwitchGate(switches)]
        gates += [self._gates[name] for name in FIRST if name in self._gates]
        refuses_unnamed = rule is None and config is not None and config.otherwise == "block"
        if rule is not None:
            named = {gate.name for gate in gates}
            gates += [self._gate(name) for name in rule.gates if name not in named]
        elif refuses_unnamed:
            gates.append(_UNNAMED)
        verdict = judge_kill_switch(switches, surface_id=surface_id, action=action)
        return _Plan(
            tuple(gates),
            consuming=tuple(gate for gate in gates if consumes(gate)),
            guards=rule is not None or refuses_unnamed or verdict.result == "block",
        )

    def _gate(self, name: str) -> Gate:
        return self._gates.get(name) or Refusing(name, _NOT_MOUNTED)

    async def _looked_again(self, ask: Ask, outcome: Outcome, generation: int) -> Outcome:
        """The kill switch once more, where the control plane changed while the gates were asked."""
        if outcome.refusal is not None or self._directory.generation == generation:
            return outcome
        kill_switch = (await self._plan(ask.context, ask.action)).gates[:1]
        again = await judge_in_order(kill_switch, ask, timeout_s=self._timeout_s)
        if again.refusal is None:
            return outcome
        return Outcome((*outcome.judged, *again.judged), outcome.took)

    # --- recording ---

    async def _recorded(
        self,
        ask: Ask,
        evaluation: EvaluationInput,
        outcome: Outcome,
        *,
        explain: bool,
        request: Request | None,
    ) -> Decided:
        """Write the event; returns the decision, or the first one where the request was answered before."""
        payload = _payload(ask, evaluation, outcome, explain=explain)
        event = SystemEvent(
            event_type=EVENT_TYPE,
            payload=msgspec.to_builtins(payload),
            parent_event_id=evaluation.parent_event_id,
            causality=evaluation.causality,
        )
        context = caused(ask.context, evaluation)
        appended = await self._spine.append_system(context, [event], request=request)
        if appended.replayed and request is not None:
            first = await self._first_decision(context, request)
            if first is None:
                raise Unavailable("the first answer to this request is not to be found")
            return first
        (placed,) = appended.events
        decision = decision_of(
            payload, event_id=placed.event_id, position=placed.position, cursor=placed.cursor
        )
        return Decided(decision)

    async def _first_decision(self, context: RequestContext, request: Request) -> Decided | None:
        """What the request was answered before. Raises IdempotencyKeyReused, Conflict (it was redacted)."""
        events = await self._spine.answered(context, request)
        if events is None:
            return None
        (event,) = events
        if event.payload is None:
            raise Conflict("the first answer to this request was redacted", field="Idempotency-Key")
        return Decided(recorded_decision(event), replayed=True)

    # --- to the end ---

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """By a task of its own: a caller that is cancelled does not break it off."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # Where nobody waits any more, nobody is to be told.


_UNNAMED: Final = Refusing(CONFIG, Verdict(result="block", reason_code="no_rule"))
_NOT_MOUNTED: Final = Verdict(result="block", reason_code="gate_not_mounted", gate_status="error")


def _payload(ask: Ask, evaluation: EvaluationInput, outcome: Outcome, *, explain: bool) -> SafetyPayload:
    """The event of a decision. Of an action that may happen it says what each gate found and took."""
    refusal = outcome.refusal
    if refusal is not None:
        details = dict(refusal.details)
    else:
        details = {one.gate: dict(one.details) for one in outcome.judged if one.details}
    asked = dict(evaluation.details)
    return SafetyPayload(
        action=ask.action,
        subject=ask.subject,
        result="pass" if refusal is None else "block",
        gate=None if refusal is None else refusal.gate,
        reason_code="passed" if refusal is None else refusal.reason_code,
        gate_status="ok" if refusal is None else refusal.gate_status,
        details=details,
        dry_run=ask.dry_run,
        asked=asked,
        judged_by=tuple(one.gate for one in outcome.judged),
        gates=tuple(one.plain() for one in outcome.judged) if explain else None,
    )


def _denial(decision: Decision) -> EnginesError:
    """What a guarded route raises for a refusal."""
    gate, reason_code = decision.gate, decision.reason_code
    detail = f"{gate} refuses {decision.action}: {REASONS[reason_code].meaning}"
    if reason_code == "missing_route":
        kind = decision.details.get("resource_kind")
        return MissingRoute(detail, resource_kind=kind, gate=gate, reason_code=reason_code)
    retry_after_s = decision.details.get("retry_after_s")
    return GateDenied(detail, gate=gate, reason_code=reason_code, retry_after_s=retry_after_s)


@contextlib.contextmanager
def _undecided() -> Iterator[None]:
    """Whatever keeps a decision from being recorded is told as what it is, and means a block."""
    try:
        yield
    except (MissingRoute, Unavailable, OutcomeUnknown, BackendRefused) as error:
        error.decision = "block"
        raise
    except (Throttled, Corrupt, ForbiddenBackendClass) as error:
        unrecorded = Unavailable(
            f"the decision could not be recorded: {error.detail}",
            resource_kind=error.resource_kind,
            retry_after_s=error.retry_after_s,
        )
        unrecorded.decision = "block"
        raise unrecorded from error
