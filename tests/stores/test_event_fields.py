"""Rules of an event's fields, of the bodies of appends, and of ids that clients bring."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest

from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    Invalid,
)
from engines.stores.event_records import RESERVED_TYPES
from engines.stores.events import (
    Causality,
    EventSpine,
    EventStreams,
)
from tests.stores.home import Home, context
from tests.stores.samples import OWN_ID, event, everything


class TestFields:
    async def test_an_event_shows_every_field_of_the_contract(self, spine: EventSpine) -> None:
        parent = str(uuid.uuid4())
        said = event(
            run_id="run-7",
            step_id="3",
            parent_event_id=parent.upper(),
            thread_id="thread",
            source="tool",
            occurred_at="2026-11-21T14:00:00.5+01:00",
            causality=Causality("trace", "span"),
            payload={"ключ": ["💡", None, 2**64 - 1]},
        )
        (appended,) = (await spine.append(context(project_id="p1", app_id="app"), [said])).events
        shown = await spine.get(context(), appended.event_id)
        assert msgspec.to_builtins(shown) == {
            "event_id": appended.event_id,
            "tenant_id": "t_one",
            "mode": "saas",
            "env": "prod",
            "user_id": "ada",
            "surface_id": "chat",
            "app_id": "app",
            "project_id": "p1",
            "run_id": "run-7",
            "step_id": "3",
            "parent_event_id": parent,
            "thread_id": "thread",
            "timestamp": "2027-01-15T08:00:00.000Z",
            "occurred_at": "2026-11-21T14:00:00.5+01:00",
            "event_type": "message",
            "source": "tool",
            "payload": {"ключ": ["💡", None, 2**64 - 1]},
            "route": "event_spine",
            "causality": {"trace_id": "trace", "span_id": "span"},
            "position": 1,
            "cursor": appended.cursor,
        }

    async def test_what_is_not_said_comes_from_the_context(self, spine: EventSpine) -> None:
        await spine.append(context(thread_id="th"), [event()])
        (shown,) = await everything(spine)
        assert (shown.run_id, shown.step_id, shown.thread_id, shown.source) == ("run-1", "0", "th", "ui")
        assert shown.causality == Causality(context().trace_id, context().span_id)
        assert (shown.parent_event_id, shown.occurred_at) == (None, None)

    async def test_another_trace_takes_no_span_from_the_request(self, spine: EventSpine) -> None:
        await spine.append(context(), [event(causality=Causality(trace_id="theirs"))])
        assert (await everything(spine))[0].causality == Causality("theirs", None)

    async def test_an_agents_event_says_so(self, spine: EventSpine) -> None:
        await spine.append(context(roles=("agent",)), [event(), event(source="connector")])
        assert [shown.source for shown in await everything(spine)] == ["agent", "connector"]

    @pytest.mark.parametrize("event_type", ["a", "a" * 64, "z_9", "handoff", "tool_call", "analytics"])
    async def test_an_event_type_is_a_lower_case_word(self, spine: EventSpine, event_type: str) -> None:
        await spine.append(context(), [event(event_type)])
        assert (await everything(spine))[0].event_type == event_type

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"event_type": "a" * 65}, "event_type"),
            ({"event_type": ""}, "event_type"),
            ({"event_type": "Rl"}, "event_type"),
            ({"event_type": "rl\n"}, "event_type"),
            ({"event_type": "9"}, "event_type"),
            ({"payload": [1]}, "payload"),
            ({"payload": "text"}, "payload"),
            ({"payload": {"a": 2**64}}, "payload"),
            ({"payload": {"a": float("inf")}}, "payload"),
            ({"event_id": "not-a-uuid"}, "event_id"),
            ({"event_id": "{" + OWN_ID + "}"}, "event_id"),
            ({"event_id": OWN_ID.replace("-", "")}, "event_id"),
            ({"event_id": "00000000-0001-8000-8000-000000000000"}, "event_id"),
            ({"parent_event_id": "1"}, "parent_event_id"),
            ({"run_id": "a/b"}, "run_id"),
            ({"run_id": ""}, "run_id"),
            ({"step_id": "x" * 129}, "step_id"),
            ({"thread_id": "a!b"}, "thread_id"),
            ({"source": "system"}, "source"),
            ({"source": "robot"}, "source"),
            ({"occurred_at": "yesterday"}, "occurred_at"),
            ({"occurred_at": "2026-11-21"}, "occurred_at"),
            ({"occurred_at": "2026-11-21T14:00:00"}, "occurred_at"),
            ({"occurred_at": "2026-13-21T14:00:00Z"}, "occurred_at"),
            ({"occurred_at": "٢٠٢٦-11-21T14:00:00Z"}, "occurred_at"),
            ({"occurred_at": "2026-11-21T14:00:00Z" + "0" * 64}, "occurred_at"),
            ({"causality": Causality(trace_id="")}, "causality.trace_id"),
            ({"causality": Causality(span_id="x" * 129)}, "causality.span_id"),
        ],
    )
    async def test_what_breaks_a_rule_is_refused_by_field(
        self, home: Home, spine: EventSpine, fields: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.append(context(), [event(**fields)])
        assert refusal.value.field == field
        assert home.driver.calls == []

    @pytest.mark.parametrize("event_type", sorted(RESERVED_TYPES))
    async def test_the_servers_types_are_forbidden_to_clients(
        self, home: Home, spine: EventSpine, event_type: str
    ) -> None:
        for role in ("member", "owner", "agent"):
            with pytest.raises(Forbidden) as refusal:
                await spine.append(context(roles=(role,)), [event(event_type)])
            assert refusal.value.field == "event_type"
            assert type(refusal.value) is Forbidden
        assert home.driver.calls == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tenant_id", "t_two"),
            ("mode", "lab"),
            ("env", "dev"),
            ("user_id", "bob"),
            ("surface_id", "canvas"),
        ],
    )
    async def test_an_event_names_no_identity_but_its_callers(
        self, home: Home, spine: EventSpine, name: str, value: str
    ) -> None:
        own = event(tenant_id="t_one", mode="saas", env="prod", user_id="ada", surface_id="chat")
        with pytest.raises(ContextMismatch) as refusal:
            await spine.append(context(), [msgspec.structs.replace(own, **{name: value})])
        assert refusal.value.field == name
        assert home.driver.calls == []
        assert len((await spine.append(context(), [own])).events) == 1

    async def test_of_several_events_the_bad_one_is_named_and_none_is_written(
        self, spine: EventSpine
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.append(context(), [event(), event(), event(run_id="a/b")])
        assert refusal.value.field == "events[2].run_id"
        with pytest.raises(Forbidden):
            await spine.append(context(), [event(), event("audit")])
        assert await everything(spine) == ()


class TestOwnIds:
    async def test_an_own_id_is_kept_in_canonical_form_and_found(self, spine: EventSpine) -> None:
        (appended,) = (await spine.append(context(), [event(event_id=OWN_ID.upper())])).events
        assert appended.event_id == OWN_ID
        assert (await spine.get(context(), OWN_ID.upper())).event_id == OWN_ID

    async def test_a_repeat_under_its_own_id_is_the_same_event(self, spine: EventSpine) -> None:
        first = await spine.append(context(), [event(event_id=OWN_ID)])
        await spine.append(context(), [event()])
        again = await spine.append(
            context(run_id="another-request", step_id="9", trace_id="f" * 32), [event(event_id=OWN_ID)]
        )
        assert again.events == first.events
        assert len(await everything(spine)) == 2

    @pytest.mark.parametrize("other", [{"payload": {"a": 2}}, {"event_type": "handoff"}, {"run_id": "x"}])
    async def test_another_event_under_a_known_id_is_a_conflict(
        self, spine: EventSpine, other: dict[str, Any]
    ) -> None:
        await spine.append(context(), [event(event_id=OWN_ID)])
        with pytest.raises(Conflict):
            await spine.append(context(), [event(event_id=OWN_ID, **other)])

    async def test_another_users_event_under_a_known_id_is_a_conflict(self, spine: EventSpine) -> None:
        await spine.append(context(), [event(event_id=OWN_ID)])
        with pytest.raises(Conflict):
            await spine.append(context(user_id="bob"), [event(event_id=OWN_ID)])

    async def test_ids_of_two_tenants_are_two_ids(self, spine: EventSpine) -> None:
        for tenant_id in ("t_one", "t_two"):
            await spine.append(context(tenant_id=tenant_id), [event(event_id=OWN_ID)])
            assert len(await everything(spine, tenant_id=tenant_id)) == 1

    async def test_no_two_logs_mint_one_id(self, spine: EventSpine, streams: EventStreams) -> None:
        contexts = [context(), context(tenant_id="t_two"), context(env="dev")]
        minted = [(await spine.append(where, [event()])).events[0].event_id for where in contexts]
        for where in contexts:
            minted += [
                (await streams.append(where, name, [event()])).events[0].event_id for name in ("a", "spine")
            ]
        assert len(set(minted)) == len(minted) == 9
