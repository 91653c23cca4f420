"""Typed payloads: what a reward, a judgement or a trial has to say, and what is refused by its member."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import pytest

from engines import catalogue
from engines.errors import Invalid
from engines.stores.event_logs import EventLogs
from engines.stores.event_payloads import ENTRIES_MAX, NAME_CHARS_MAX, PAYLOADS, TEXT_CHARS_MAX
from engines.stores.events import SPINE_STREAM, EventSpine, EventStreams, SystemEvent
from engines.stores.open_logs import OpenLogs
from tests.stores.home import Home, context
from tests.stores.samples import OWN_ID, event, everything

REWARD: dict[str, Any] = {"kind": "reward", "value": 1}
PREFERENCE: dict[str, Any] = {
    "kind": "preference",
    "chosen": {"candidate_id": "a", "text": "Your flight is booked."},
    "rejected": {"candidate_id": "b", "event_id": OWN_ID},
}
FEEDBACK: dict[str, Any] = {
    "kind": "human_feedback",
    "score": 4,
    "scale": {"minimum": 1, "maximum": 5},
}
TRIAL: dict[str, Any] = {
    "kind": "trial",
    "study_id": "prompts",
    "trial_id": "7",
    "parameters": {"temperature": 0.2, "system_prompt": "Be brief.", "tools": True, "top_k": 40},
}
PARAMETERS: dict[str, Any] = {
    "kind": "parameters",
    "target": "booking agent",
    "parameters": {"temperature": 0.2},
}
OUTCOME: dict[str, Any] = {
    "kind": "outcome",
    "study_id": "prompts",
    "trial_id": "7",
    "state": "completed",
    "metrics": {"success rate": 0.46},
}
SAMPLES = {
    "reward": ("rl", REWARD),
    "preference": ("rlha", PREFERENCE),
    "human_feedback": ("rlha", FEEDBACK),
    "trial": ("tuning", TRIAL),
    "parameters": ("tuning", PARAMETERS),
    "outcome": ("tuning", OUTCOME),
}

FULL = [
    (
        "rl",
        {
            **REWARD,
            "value": -0.5,
            "signal": "politeness",
            "terminated": True,
            "truncated": False,
            "policy": "2026-11-21",
            "details": {"дом": [1, None, {"a": 2**64 - 1}]},
        },
    ),
    ("rlha", {**PREFERENCE, "prompt": "Book it", "criterion": "tone", "margin": 0.5, "reason": "shorter"}),
    ("rlha", {**FEEDBACK, "criterion": "tone", "label": "good", "comment": "💡", "correction": "Booked."}),
    ("rlha", {"kind": "human_feedback", "label": "wrong tool"}),
    ("rlha", {"kind": "human_feedback", "comment": "No."}),
    ("rlha", {"kind": "human_feedback", "correction": "Yes."}),
    ("tuning", {**TRIAL, "objectives": [{"metric": "success rate", "goal": "maximize"}]}),
    ("tuning", {**PARAMETERS, "study_id": "prompts", "trial_id": "7", "reason": "the best of 40"}),
    ("tuning", {**OUTCOME, "duration_s": 12.5}),
    ("tuning", {**OUTCOME, "state": "pruned", "metrics": {}}),
    ("tuning", {**OUTCOME, "state": "failed", "metrics": {}, "reason": "the model was away"}),
    ("tuning", {**OUTCOME, "state": "infeasible"}),
]


def without(payload: dict[str, Any], member: str) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name != member}


LONG_NAME = "n" * (NAME_CHARS_MAX + 1)
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    # The kind.
    ("rl", {**REWARD, "kind": "Reward"}, "payload.kind"),
    ("rl", {**REWARD, "kind": None}, "payload.kind"),
    ("rl", {**REWARD, "kind": ["reward"]}, "payload.kind"),
    ("rlha", REWARD, "payload.kind"),
    ("tuning", REWARD, "payload.kind"),
    ("rl", PREFERENCE, "payload.kind"),
    ("rlha", OUTCOME, "payload.kind"),
    # A reward.
    ("rl", {"kind": "reward"}, "payload.value"),
    ("rl", {**REWARD, "value": "1"}, "payload.value"),
    ("rl", {**REWARD, "value": True}, "payload.value"),
    ("rl", {**REWARD, "value": None}, "payload.value"),
    ("rl", {**REWARD, "value": math.nan}, "payload.value"),
    ("rl", {**REWARD, "value": math.inf}, "payload.value"),
    ("rl", {**REWARD, "reward": 1}, "payload.reward"),
    ("rl", {**REWARD, "signal": ""}, "payload.signal"),
    ("rl", {**REWARD, "signal": LONG_NAME}, "payload.signal"),
    ("rl", {**REWARD, "terminated": 1}, "payload.terminated"),
    ("rl", {**REWARD, "policy": LONG_NAME}, "payload.policy"),
    ("rl", {**REWARD, "details": [1]}, "payload.details"),
    ("rl", {**REWARD, "details": {"a": math.nan}}, "payload"),
    # A preference.
    ("rlha", without(PREFERENCE, "chosen"), "payload.chosen"),
    ("rlha", without(PREFERENCE, "rejected"), "payload.rejected"),
    ("rlha", {**PREFERENCE, "rejected": "b"}, "payload.rejected"),
    ("rlha", {**PREFERENCE, "rejected": {"candidate_id": "a"}}, "payload.rejected.candidate_id"),
    ("rlha", {**PREFERENCE, "rejected": {"candidate_id": "a/b"}}, "payload.rejected.candidate_id"),
    ("rlha", {**PREFERENCE, "rejected": {"text": "x"}}, "payload.rejected.candidate_id"),
    ("rlha", {**PREFERENCE, "rejected": {"candidate_id": "b", "name": "x"}}, "payload.rejected.name"),
    ("rlha", {**PREFERENCE, "rejected": {"candidate_id": "b", "event_id": "7"}}, "payload.rejected.event_id"),
    (
        "rlha",
        {
            **PREFERENCE,
            "chosen": {"candidate_id": "a", "event_id": OWN_ID},
            "rejected": {"candidate_id": "b", "event_id": OWN_ID.upper()},
        },
        "payload.rejected.event_id",
    ),
    (
        "rlha",
        {**PREFERENCE, "chosen": {"candidate_id": "a", "text": "x" * (TEXT_CHARS_MAX + 1)}},
        "payload.chosen.text",
    ),
    ("rlha", {**PREFERENCE, "margin": 0}, "payload.margin"),
    ("rlha", {**PREFERENCE, "margin": -1}, "payload.margin"),
    ("rlha", {**PREFERENCE, "margin": math.nan}, "payload.margin"),
    ("rlha", {**PREFERENCE, "prompt": ""}, "payload.prompt"),
    # Human feedback.
    ("rlha", {"kind": "human_feedback"}, "payload"),
    ("rlha", {"kind": "human_feedback", "criterion": "tone"}, "payload"),
    ("rlha", without(FEEDBACK, "scale"), "payload.scale"),
    ("rlha", {**without(FEEDBACK, "score"), "label": "good"}, "payload.scale"),
    ("rlha", {**FEEDBACK, "score": 6}, "payload.score"),
    ("rlha", {**FEEDBACK, "score": 0.999}, "payload.score"),
    ("rlha", {**FEEDBACK, "score": math.nan}, "payload.score"),
    ("rlha", {**FEEDBACK, "scale": {"minimum": 1}}, "payload.scale.maximum"),
    ("rlha", {**FEEDBACK, "scale": {"minimum": 5, "maximum": 5}}, "payload.scale.maximum"),
    ("rlha", {**FEEDBACK, "scale": {"minimum": -math.inf, "maximum": 5}}, "payload.scale.minimum"),
    ("rlha", {**FEEDBACK, "scale": {"minimum": 1, "maximum": math.nan}}, "payload.scale.maximum"),
    ("rlha", {"kind": "human_feedback", "comment": "x" * (TEXT_CHARS_MAX + 1)}, "payload.comment"),
    # A trial.
    ("tuning", without(TRIAL, "parameters"), "payload.parameters"),
    ("tuning", {**TRIAL, "parameters": {}}, "payload.parameters"),
    ("tuning", {**TRIAL, "parameters": {str(n): n for n in range(ENTRIES_MAX + 1)}}, "payload.parameters"),
    ("tuning", {**TRIAL, "parameters": {"": 1}}, "payload.parameters"),
    ("tuning", {**TRIAL, "parameters": {LONG_NAME: 1}}, "payload.parameters"),
    ("tuning", {**TRIAL, "parameters": {"a": [1]}}, "payload.parameters[...]"),
    ("tuning", {**TRIAL, "parameters": {"a": None}}, "payload.parameters[...]"),
    ("tuning", {**TRIAL, "parameters": {"a": math.inf}}, "payload.parameters.a"),
    ("tuning", without(TRIAL, "study_id"), "payload.study_id"),
    ("tuning", without(TRIAL, "trial_id"), "payload.trial_id"),
    ("tuning", {**TRIAL, "trial_id": 7}, "payload.trial_id"),
    ("tuning", {**TRIAL, "trial_id": "x" * 129}, "payload.trial_id"),
    ("tuning", {**TRIAL, "objectives": [{"metric": "a"}]}, "payload.objectives[0].goal"),
    ("tuning", {**TRIAL, "objectives": [{"metric": "a", "goal": "best"}]}, "payload.objectives[0].goal"),
    (
        "tuning",
        {**TRIAL, "objectives": [{"metric": "a", "goal": goal} for goal in ("minimize", "maximize")]},
        "payload.objectives[1].metric",
    ),
    # Parameters.
    ("tuning", without(PARAMETERS, "target"), "payload.target"),
    ("tuning", {**PARAMETERS, "parameters": {}}, "payload.parameters"),
    ("tuning", {**PARAMETERS, "parameters": {"a": math.nan}}, "payload.parameters.a"),
    ("tuning", {**PARAMETERS, "trial_id": "7"}, "payload.study_id"),
    # An outcome.
    ("tuning", without(OUTCOME, "state"), "payload.state"),
    ("tuning", {**OUTCOME, "state": "running"}, "payload.state"),
    ("tuning", without(OUTCOME, "metrics"), "payload.metrics"),
    ("tuning", {**OUTCOME, "metrics": {"a": "1"}}, "payload.metrics[...]"),
    ("tuning", {**OUTCOME, "metrics": {"a": math.nan}}, "payload.metrics.a"),
    ("tuning", {**OUTCOME, "duration_s": -0.001}, "payload.duration_s"),
    ("tuning", {**OUTCOME, "duration_s": math.inf}, "payload.duration_s"),
    ("tuning", {**OUTCOME, "state": "failed"}, "payload.reason"),
]


def test_the_table_names_each_kind_as_its_type_does() -> None:
    for kinds in PAYLOADS.values():
        for name, payload in kinds.items():
            (member,) = [field for field in msgspec.structs.fields(payload) if field.name == "kind"]
            assert get_args(member.type) == (name,)


class TestWhatIsTaken:
    @pytest.mark.parametrize(("event_type", "payload"), [*SAMPLES.values(), *FULL])
    async def test_a_well_formed_payload_is_kept_as_it_was_said(
        self, spine: EventSpine, event_type: str, payload: dict[str, Any]
    ) -> None:
        await spine.append(context(), [event(event_type, payload=payload)])
        (shown,) = await everything(spine)
        assert (shown.event_type, shown.payload) == (event_type, payload)

    async def test_every_limit_is_still_within(self, spine: EventSpine) -> None:
        names = {f"{n:03}".rjust(NAME_CHARS_MAX, "n"): n for n in range(ENTRIES_MAX)}
        wide = {**OUTCOME, "metrics": names}
        long = {"kind": "human_feedback", "label": "n" * NAME_CHARS_MAX, "comment": "x" * TEXT_CHARS_MAX}
        await spine.append(context(), [event("tuning", payload=wide), event("rlha", payload=long)])
        assert len(await everything(spine)) == 2

    @pytest.mark.parametrize("event_type", ["rl_", "message", "analytics", "tuning_note"])
    async def test_other_types_have_any_payload(self, spine: EventSpine, event_type: str) -> None:
        await spine.append(context(), [event(event_type, payload={"kind": "reward", "value": "much"})])
        assert len(await everything(spine)) == 1

    @pytest.mark.parametrize("event_type", sorted(PAYLOADS))
    async def test_on_a_stream_every_payload_is_free(self, streams: EventStreams, event_type: str) -> None:
        await streams.append(context(), "thread", [event(event_type, payload={"n": 1})])
        assert len((await streams.list(context(), "thread")).items) == 1

    @pytest.mark.parametrize("event_type", sorted(PAYLOADS))
    async def test_what_stands_on_a_spine_from_before_is_read_as_it_is(
        self, home: Home, spine: EventSpine, event_type: str
    ) -> None:
        logs = OpenLogs(home.ids, home.clock)
        before = EventLogs(catalogue.EVENT_SPINE, home, logs)
        earlier = event(event_type, payload={"n": 1}, event_id=OWN_ID)
        await before.append(context(), SPINE_STREAM, [earlier])
        await before.close()
        (shown,) = await everything(spine)
        assert shown.payload == {"n": 1}
        assert (await spine.get(context(), OWN_ID)).payload == {"n": 1}
        assert (await spine.verify(context())).ok


class TestWhatIsRefused:
    @pytest.mark.parametrize(("event_type", "payload", "field"), MALFORMED)
    async def test_a_malformed_payload_is_refused_by_its_member_and_nothing_is_written(
        self, home: Home, spine: EventSpine, event_type: str, payload: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.append(context(), [event(event_type, payload=payload)])
        assert refusal.value.field == field
        assert home.driver.calls == []

    async def test_of_several_events_the_malformed_one_is_named_and_none_is_written(
        self, spine: EventSpine
    ) -> None:
        good, bad = event("rl", payload=REWARD), event("rl", payload={"kind": "reward"})
        with pytest.raises(Invalid) as refusal:
            await spine.append(context(), [good, event(), bad])
        assert refusal.value.field == "events[2].payload.value"
        assert await everything(spine) == ()

    async def test_the_servers_own_events_keep_the_rules_too(self, spine: EventSpine) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.append_system(context(), [SystemEvent(event_type="rl", payload={"kind": "reward"})])
        assert refusal.value.field == "payload.value"
        assert await everything(spine) == ()
        await spine.append_system(context(), [SystemEvent(event_type="rl", payload=REWARD)])
        assert (await everything(spine))[0].payload == REWARD
