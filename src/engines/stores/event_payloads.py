"""What the payload of an event says where its type is one that learning reads: rewards, judgements, trials.

Owns the table of those types and kinds, and the rules of each. An event of the spine whose type stands in
`PAYLOADS` and whose payload has a member `kind` is of the kind that it names, or it is refused. Every other
type's payload is free, as is one without that member (these types stood on spines before there were kinds),
and so is every payload on a stream. A rule holds for what is appended from now on: what stands on a spine
already is read as it was written.

What a payload is about is said by its event: `run_id` and `step_id`, and by `parent_event_id` which event.
That it exists is not looked up; a log is no place for foreign keys.

The members follow what trainers and tuners read: reward, terminated and truncated are Gymnasium's
(https://gymnasium.farama.org/api/env/#gymnasium.Env.step); prompt, chosen, rejected and margin are those of
preference datasets (https://huggingface.co/docs/trl/dataset_formats); study, trial and the states of its
outcome are Vizier's (Golovin et al., KDD 2017, section 3.1) and Optuna's
(https://optuna.readthedocs.io/en/stable/reference/generated/optuna.trial.TrialState.html).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines.errors import Invalid
from engines.stores.scoped import invalid_body

FIELD: Final = "payload"
NAME_CHARS_MAX: Final = 128
TEXT_CHARS_MAX: Final = 64 * 1024
# Of parameters, metrics and objectives; what they hold is bounded by the size of an append besides.
ENTRIES_MAX: Final = 256

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}\Z")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Text = Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)]
ParameterValue = bool | int | float | Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]
ParameterValues = Annotated[dict[Name, ParameterValue], Meta(min_length=1, max_length=ENTRIES_MAX)]
Metrics = Annotated[dict[Name, float], Meta(max_length=ENTRIES_MAX)]

_MEMBER = re.compile(r"^Object (?:missing required|contains unknown) field `([^`]+)`")


class TypedPayload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every typed payload may have: `details`, any JSON object of the writer's own.

    A base because the JSON of a payload is flat.
    """

    details: dict[str, Any] = {}

    def check(self) -> None:
        """What no type of a single member says. Raises Invalid with the `field`."""


class Reward(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward for a step or a run, as `rl`.

    `signal` tells several rewards of one step apart. `terminated`: the run came to its own end with this;
    `truncated`: it was cut off from outside, by a limit of time or of steps. `policy` is the version that
    acted.
    """

    kind: Literal["reward"]
    value: float
    signal: Name = "reward"
    terminated: bool = False
    truncated: bool = False
    policy: Name | None = None

    def check(self) -> None:
        _check_finite(self.value, "value")


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the answers that were compared: its text, or the event that holds it, or both."""

    candidate_id: Id
    text: Text | None = None
    event_id: Uuid | None = None


class Preference(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of two candidates was preferred, as `rlha`. `margin` says by how much, above 0.

    Of more than two candidates, each pair that was judged is an event of its own.
    """

    kind: Literal["preference"]
    chosen: Candidate
    rejected: Candidate
    prompt: Text | None = None
    criterion: Name | None = None
    margin: float | None = None
    reason: Text | None = None

    def check(self) -> None:
        if self.chosen.candidate_id == self.rejected.candidate_id:
            raise _refused("a preference names two different candidates", "rejected.candidate_id")
        if _is_same(self.chosen.event_id, self.rejected.event_id):
            raise _refused("a preference names the events of two different candidates", "rejected.event_id")
        if self.margin is not None:
            _check_finite(self.margin, "margin")
            if self.margin <= 0:
                raise _refused("a margin is above 0: the chosen candidate is the better one", "margin")


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From what to what a score goes, both ends included."""

    minimum: float
    maximum: float


class HumanFeedback(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person thinks of an answer or a run, as `rlha`.

    At least one of score, label, comment and correction; a score comes with its scale. `correction` is what
    the answer should have been.
    """

    kind: Literal["human_feedback"]
    criterion: Name | None = None
    score: float | None = None
    scale: Scale | None = None
    label: Name | None = None
    comment: Text | None = None
    correction: Text | None = None

    def check(self) -> None:
        if (self.score, self.label, self.comment, self.correction) == (None, None, None, None):
            raise _refused("feedback has a score, a label, a comment or a correction", None)
        if self.scale is not None:
            _check_scale(self.scale)
        if self.score is None:
            if self.scale is not None:
                raise _refused("a scale belongs to a score", "scale")
            return
        _check_finite(self.score, "score")
        if self.scale is None:
            raise _refused("a score comes with its scale", "scale")
        if not self.scale.minimum <= self.score <= self.scale.maximum:
            raise _refused("the score is not on its scale", "score")


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a study is after: a metric by its name, and which way is better."""

    metric: Name
    goal: Literal["minimize", "maximize"]


class Trial(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trial of a study begins, as `tuning`, with the parameters that it tries."""

    kind: Literal["trial"]
    study_id: Id
    trial_id: Id
    parameters: ParameterValues
    objectives: Annotated[list[Objective], Meta(max_length=ENTRIES_MAX)] = []

    def check(self) -> None:
        _check_all_finite(self.parameters.items(), "parameters")
        metrics = [objective.metric for objective in self.objectives]
        for index, metric in enumerate(metrics):
            if metric in metrics[:index]:
                raise _refused("a metric has one objective", f"objectives[{index}].metric")


class Parameters(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters are in force from now on, as `tuning`; where a trial found them, with its study and id.

    `target` is what they are of: an agent, a model, a surface.
    """

    kind: Literal["parameters"]
    target: Name
    parameters: ParameterValues
    study_id: Id | None = None
    trial_id: Id | None = None
    reason: Text | None = None

    def check(self) -> None:
        _check_all_finite(self.parameters.items(), "parameters")
        if self.trial_id is not None and self.study_id is None:
            raise _refused("a trial is one of a study", "study_id")


class Outcome(TypedPayload, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a trial ended, as `tuning`: completed with its metrics, pruned early, failed, or infeasible.

    A trial that did not complete may have metrics of how far it came; one that failed says why.
    """

    kind: Literal["outcome"]
    study_id: Id
    trial_id: Id
    state: Literal["completed", "pruned", "failed", "infeasible"]
    metrics: Metrics = {}
    duration_s: float | None = None
    reason: Text | None = None

    def check(self) -> None:
        _check_all_finite(self.metrics.items(), "metrics")
        if self.duration_s is not None:
            _check_finite(self.duration_s, "duration_s")
            if self.duration_s < 0:
                raise _refused("a duration is not below 0", "duration_s")
        if self.state == "completed" and not self.metrics:
            raise _refused("a completed trial has at least one metric", "metrics")
        if self.state == "failed" and self.reason is None:
            raise _refused("a failed trial says why", "reason")


PAYLOADS: Final[Mapping[str, Mapping[str, type[TypedPayload]]]] = {
    "rl": {"reward": Reward},
    "rlha": {"preference": Preference, "human_feedback": HumanFeedback},
    "tuning": {"trial": Trial, "parameters": Parameters, "outcome": Outcome},
}


def check_payload(event_type: str, payload: Mapping[str, Any]) -> None:
    """Pass a payload that is one of its event type's kinds, or that says no kind, or whose type has none.

    Raises Invalid; `field` is the member that breaks a rule, such as `payload.score`.
    """
    kinds = PAYLOADS.get(event_type)
    if kinds is None or "kind" not in payload:
        return
    kind = payload["kind"]
    expected = kinds.get(kind) if isinstance(kind, str) else None
    if expected is None:
        names = " or ".join(kinds)
        raise _refused(f"the payload of an event of type {event_type} is of the kind {names}", "kind")
    try:
        msgspec.convert(payload, expected).check()
    except msgspec.ValidationError as error:
        raise _of_member(error) from None


def _of_member(error: msgspec.ValidationError) -> Invalid:
    """msgspec names the object in which a member is missing or too many; the member itself is meant."""
    refusal = invalid_body(error)
    member = _MEMBER.search(refusal.detail)
    path = [FIELD, refusal.field, None if member is None else member[1]]
    refusal.field = ".".join(name for name in path if name)
    return refusal


def _refused(sentence: str, member: str | None) -> Invalid:
    return Invalid(sentence, field=FIELD if member is None else f"{FIELD}.{member}")


def _check_finite(number: float, member: str) -> None:
    if not math.isfinite(number):
        raise _refused("a number is finite", member)


def _check_all_finite(values: Iterable[tuple[str, Any]], member: str) -> None:
    for name, value in values:
        if isinstance(value, float):
            _check_finite(value, f"{member}.{name}")


def _check_scale(scale: Scale) -> None:
    _check_finite(scale.minimum, "scale.minimum")
    _check_finite(scale.maximum, "scale.maximum")
    if scale.minimum >= scale.maximum:
        raise _refused("a scale goes from its minimum up to its maximum", "scale.maximum")


def _is_same(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one.lower() == other.lower()
