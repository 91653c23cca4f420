"""What is asked of the gates, and what they answer.

Owns the body of an evaluation with its limits, the question as each gate is given it, a gate's verdict, and
the decision that is recorded and shown. Leaves judging to `safety/gates.py` and recording to
`safety/evaluations.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from engines.codec import check_json_value, encode_json
from engines.errors import Invalid, TooLarge
from engines.safety.reasons import ReasonCode
from engines.scope import RequestContext, check_id
from engines.stores.event_records import Causality, Event, is_uuid
from engines.stores.scoped import IdentityFields, check_body, validated

SUBJECT_CHARS_MAX: Final = 256
# What a caller adds to the record of a decision; an event holds many times that.
DETAILS_BYTES_MAX: Final = 8 * 1024
DIGITS_MAX: Final = 28

Result = Literal["pass", "block"]
GateStatus = Literal["ok", "error"]
Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=SUBJECT_CHARS_MAX)]
_AMOUNT = re.compile(r"\d+(\.\d+)?", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_NOTHING: Final[Mapping[str, Any]] = {}


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What an action would cost. `amount`: a decimal number as text, at most 28 digits, never negative."""

    amount: str
    currency: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None


class EvaluationInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """May this action happen? `action` is its name; nothing here is taken for who asks.

    `subject`: whom or what it is done to, in the caller's own words. `details`: whatever else belongs in the
    record of the decision, at most 8 KiB. `dry_run` is recorded as such, and takes neither budget nor quota.
    """

    action: str
    subject: Subject | None = None
    details: dict[str, Any] = msgspec.field(default_factory=dict)
    cost: Cost | None = None
    dry_run: bool = False
    run_id: str | None = None
    step_id: str | None = None
    thread_id: str | None = None
    parent_event_id: str | None = None
    causality: Causality | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The question as every gate is given it.

    `evaluation_id` is the same when the same request is asked again, so that what a gate takes under it is
    taken once. `at_s`: now, in epoch seconds.
    """

    context: RequestContext
    action: str
    subject: str
    cost: Cost | None
    dry_run: bool
    evaluation_id: str
    at_s: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate says. `details` justify it and are recorded; `inputs` are what it judged by.

    Neither holds a secret: both are shown to whoever may explain a decision. Few ask, so `inputs` may hold
    structs, which `plain` turns into JSON's values.
    """

    result: Result
    reason_code: ReasonCode = "passed"
    gate_status: GateStatus = "ok"
    details: Mapping[str, Any] = _NOTHING
    inputs: Mapping[str, Any] = _NOTHING


class Judged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One gate's verdict, as a decision that was asked to explain itself shows it."""

    gate: str
    result: Result
    reason_code: ReasonCode
    gate_status: GateStatus = "ok"
    details: Mapping[str, Any] = {}
    inputs: Mapping[str, Any] = {}

    def plain(self) -> Judged:
        """The same, in values that JSON has."""
        return msgspec.structs.replace(self, inputs=msgspec.to_builtins(self.inputs))


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the action may happen, and the event that records it.

    `gate`: who refuses; null where nobody does. `details`: what that gate found, and what was taken for an
    action that may happen, such as the reservation of its cost. `gates`: each verdict, where it was asked
    for.
    """

    decision: Result
    gate: str | None
    reason_code: ReasonCode
    gate_status: GateStatus
    action: str
    subject: str
    dry_run: bool
    details: dict[str, Any]
    gates: tuple[Judged, ...] | None = None
    event_id: str
    position: int
    cursor: str


class Decided(msgspec.Struct, frozen=True):
    """The answer to an evaluation. `replayed`: it was given before, to an identical request."""

    answer: Decision
    replayed: bool = False

    @property
    def passed(self) -> bool:
        return self.answer.decision == "pass"


class SafetyPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of a `safety` event. `asked`: what the caller told; run, step and trace are the event's."""

    action: str
    subject: str
    result: Result
    gate: str | None
    reason_code: ReasonCode
    gate_status: GateStatus
    details: dict[str, Any]
    dry_run: bool
    asked: dict[str, Any]
    judged_by: tuple[str, ...]
    gates: tuple[Judged, ...] | None = None


def checked(context: RequestContext, evaluation: EvaluationInput) -> EvaluationInput:
    """An evaluation that breaks no rule and names nobody but its caller.

    Raises Invalid, ContextMismatch and TooLarge with the `field`.
    """
    evaluation = check_body(context, evaluation)
    check_id(evaluation.action, "action")
    for name in ("run_id", "step_id", "thread_id"):
        if (value := getattr(evaluation, name)) is not None:
            check_id(value, name)
    parent_event_id = evaluation.parent_event_id
    if parent_event_id is not None:
        if not is_uuid(parent_event_id):
            raise Invalid("an event id is a UUID of 36 characters", field="parent_event_id")
        evaluation = msgspec.structs.replace(evaluation, parent_event_id=parent_event_id.lower())
    if evaluation.causality is not None:
        validated(evaluation.causality, "causality")
    if evaluation.cost is not None:
        _check_cost(validated(evaluation.cost, "cost"))
    check_json_value(evaluation.details, "details")
    if len(encode_json(evaluation.details).encode()) > DETAILS_BYTES_MAX:
        raise TooLarge(f"details are at most {DETAILS_BYTES_MAX} bytes of JSON", field="details")
    return evaluation


def caused(context: RequestContext, evaluation: EvaluationInput) -> RequestContext:
    """The context with the run, step and thread that the evaluation itself names."""
    return msgspec.structs.replace(
        context,
        run_id=evaluation.run_id or context.run_id,
        step_id=evaluation.step_id or context.step_id,
        thread_id=evaluation.thread_id or context.thread_id,
    )


def decision_of(payload: SafetyPayload, *, event_id: str, position: int, cursor: str) -> Decision:
    """What is answered of a decision that stands on the spine."""
    return Decision(
        decision=payload.result,
        gate=payload.gate,
        reason_code=payload.reason_code,
        gate_status=payload.gate_status,
        action=payload.action,
        subject=payload.subject,
        dry_run=payload.dry_run,
        details=payload.details,
        gates=payload.gates,
        event_id=event_id,
        position=position,
        cursor=cursor,
    )


def recorded_decision(event: Event) -> Decision:
    """The decision that an event records."""
    payload = msgspec.convert(event.payload, SafetyPayload)
    return decision_of(payload, event_id=event.event_id, position=event.position, cursor=event.cursor)


def _check_cost(cost: Cost) -> None:
    digits = len(cost.amount) - cost.amount.count(".")
    if not _AMOUNT.fullmatch(cost.amount) or digits > DIGITS_MAX:
        raise Invalid(f"a decimal number of at most {DIGITS_MAX} digits, as text", field="cost.amount")
    if not _CURRENCY.fullmatch(cost.currency):
        raise Invalid("a currency is three capital letters (ISO 4217)", field="cost.currency")
    for name in ("provider", "model", "tool"):
        if (value := getattr(cost, name)) is not None:
            check_id(value, f"cost.{name}")
