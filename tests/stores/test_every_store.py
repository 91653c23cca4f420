"""Rules of every store whose records their users name: who wins, who sees what, what repeats get."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import msgspec
import pytest

from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.memory import AgentMemoryInput
from engines.agent.messages import MessageInput
from engines.agent.sessions import SessionInput, SessionPatch
from engines.agent.telemetry import TokensInput
from engines.agent.traces import TraceInput
from engines.core.listing import Window
from engines.core.records import RECORD_BYTES_MAX, Condition
from engines.errors import (
    ContextMismatch,
    IdempotencyKeyReused,
    Invalid,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)
from engines.scope import RequestContext
from engines.stores.blackboard import BlackboardInput
from engines.stores.events import NewEvent, NewEvents, NewStreamEvent
from engines.stores.memory import MemoryInput
from engines.stores.notes import NoteInput
from engines.stores.tables import TableRowInput
from engines.testing.faults import Fault, FaultPlan
from tests.stores.home import Home, context
from tests.stores.subjects import SUBJECTS, Subject, at, keyed

ABSENT = Condition(absent=True)
PRESENT = Condition(versions=("*",))
NESTED_63: Any = None
for _ in range(63):
    NESTED_63 = [NESTED_63]


@pytest.fixture(params=sorted(SUBJECTS))
def subject(request: pytest.FixtureRequest, home: Home) -> Subject:
    return SUBJECTS[request.param](home)


@pytest.fixture(params=sorted(name for name, subject in SUBJECTS.items() if subject.deletes))
def deleting(request: pytest.FixtureRequest, home: Home) -> Subject:
    """The stores that have a deletion."""
    return SUBJECTS[request.param](home)


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            0,
            -(2**63),
            2**64 - 1,
            1.5e-300,
            "",
            'é\x00💡\u2028"\\',
            [],
            {},
            {"": [{"a": None}]},
            NESTED_63,
        ],
    )
    async def test_any_json_comes_back_as_it_was(self, subject: Subject, value: Any) -> None:
        change = await subject.put(context(), value, condition=subject.creating)
        assert change.created
        found = await subject.get(context())
        assert found == change.record
        assert found.value == value
        assert type(found.value) is type(value)

    @pytest.mark.parametrize(
        "value",
        [2**64, -(2**63) - 1, float("nan"), float("-inf"), [NESTED_63], {1: 2}, (1,), {"a"}, b"x", object()],
    )
    async def test_what_json_cannot_keep_is_invalid(self, home: Home, subject: Subject, value: Any) -> None:
        with pytest.raises(Invalid) as refusal:
            await subject.put(context(), value, condition=subject.creating)
        assert refusal.value.field == "value"
        assert home.driver.calls == []

    async def test_a_value_past_the_size_of_a_record_is_too_large(self, subject: Subject) -> None:
        await subject.put(context(), "é" * ((RECORD_BYTES_MAX - 5_000) // 2), condition=subject.creating)
        with pytest.raises(TooLarge):
            await subject.put(context(), '"' * ((RECORD_BYTES_MAX - 100) // 2), condition=ABSENT, key="other")
        with pytest.raises(NotFound):
            await subject.get(context(), "other")


class TestConditions:
    async def test_each_write_has_an_etag_of_its_own_even_of_the_same_value(self, subject: Subject) -> None:
        first = await subject.put(context(), 1, condition=subject.creating)
        second = await subject.put(context(), 1, condition=at(first.record))
        assert second.etag != first.etag
        assert not second.created
        assert (await subject.get(context())).etag == second.etag
        assert first.etag[0] == first.etag[-1] == '"'

    async def test_if_match_holds_for_one_of_several_and_for_any(self, subject: Subject) -> None:
        first = (await subject.put(context(), 1, condition=subject.creating)).record
        several = Condition(versions=("0" * 32, first.etag.strip('"')))
        await subject.put(context(), 2, condition=several)
        await subject.put(context(), 3, condition=PRESENT)
        with pytest.raises(PreconditionFailed) as refusal:
            await subject.put(context(), 4, condition=several)
        assert refusal.value.field == "If-Match"
        assert (await subject.get(context())).value == 3

    async def test_what_must_be_absent_is_and_what_must_be_there_is(self, subject: Subject) -> None:
        with pytest.raises(PreconditionFailed):
            await subject.put(context(), 1, condition=PRESENT)
        await subject.put(context(), 1, condition=ABSENT)
        with pytest.raises(PreconditionFailed) as refusal:
            await subject.put(context(), 2, condition=ABSENT)
        assert refusal.value.field == "If-None-Match"

    async def test_of_those_who_replace_one_version_one_wins(self, subject: Subject) -> None:
        first = (await subject.put(context(), 0, condition=subject.creating)).record
        outcomes = await asyncio.gather(
            *(subject.put(context(), number, condition=at(first)) for number in range(1, 7)),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(won) == 1
        assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 5
        assert await subject.get(context()) == won[0].record


class TestScope:
    @pytest.mark.parametrize("stamped", [{}, {"project_id": "p1", "app_id": "app", "thread_id": "th"}])
    async def test_identity_and_provenance_are_the_contexts(
        self, subject: Subject, stamped: dict[str, str]
    ) -> None:
        who = context(**stamped)
        record = (await subject.put(who, 1, condition=subject.creating)).record
        names = (
            "tenant_id",
            "mode",
            "env",
            "user_id",
            "surface_id",
            "app_id",
            "project_id",
            "step_id",
            "thread_id",
        )
        assert [getattr(record, name) for name in names] == [getattr(who, name) for name in names]
        assert record.run_id == ("r" if subject.name == "blackboard" else "run-1")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tenant_id", "t_two"),
            ("mode", "lab"),
            ("env", "dev"),
            ("user_id", "bob"),
            ("surface_id", "canvas"),
            ("app_id", "app"),
            ("project_id", "p2"),
        ],
    )
    async def test_a_body_names_nobody_but_its_caller(
        self, home: Home, subject: Subject, name: str, value: str
    ) -> None:
        who = context(project_id="p1")
        with pytest.raises(ContextMismatch) as refusal:
            await subject.put(who, 1, condition=subject.creating, named={name: value})
        assert refusal.value.field == name
        assert home.driver.calls == []
        own = {"tenant_id": "t_one", "mode": "saas", "env": "prod", "user_id": "ada", "project_id": "p1"}
        await subject.put(who, 1, condition=subject.creating, named={**own, "surface_id": "CHAT"})

    @pytest.mark.parametrize(("name", "value"), [("tenant_id", "one"), ("env", "Prod"), ("user_id", "a/b")])
    async def test_identity_that_breaks_its_pattern_is_invalid(
        self, subject: Subject, name: str, value: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await subject.put(context(), 1, condition=subject.creating, named={name: value})
        assert refusal.value.field == name

    async def test_each_sees_what_is_its_own_and_nothing_else(self, subject: Subject) -> None:
        dimensions = {
            "tenant_id": ("t_one", "t_one-2"),
            "env": ("prod", "prod-2"),
            "user_id": ("ada", "ada-2"),
            "project_id": (None, "p1", "p1-2"),
            "surface_id": ("chat", "canvas"),
        }
        everyone = [
            context(**dict(zip(dimensions, values, strict=True))) for values in product(*dimensions.values())
        ]

        def owner(who: RequestContext) -> tuple[Any, ...]:
            return tuple(getattr(who, name) for name in sorted(subject.separates))

        owners: dict[tuple[Any, ...], RequestContext] = {}
        for who in everyone:
            if owner(who) in owners:
                assert (await subject.get(who)).value == list(owner(who))
                continue
            with pytest.raises(NotFound):
                await subject.get(who)
            assert (await subject.list(who)).items == ()
            assert (await subject.put(who, list(owner(who)), condition=ABSENT)).created
            owners[owner(who)] = who
        for who in everyone:
            listed = await subject.list(who)
            assert [item.value for item in listed.items] == [list(owner(who))]
        if subject.deletes:
            gone, *rest = owners.values()
            await subject.delete(gone)
            with pytest.raises(NotFound):
                await subject.get(gone)
            for who in rest:
                assert (await subject.get(who)).value == list(owner(who))

    async def test_a_cursor_fits_the_list_of_its_owner_alone(self, subject: Subject) -> None:
        for key in ("a", "b", "c"):
            await subject.put(context(project_id="p1"), key, condition=subject.creating, key=key)
        after = (await subject.list(context(project_id="p1"), Window(limit=1))).after
        others = {"tenant_id": "t_two", "env": "dev", "user_id": "bob", "project_id": "p2"}
        for name, value in others.items():
            call = subject.list(context(**{"project_id": "p1", name: value}), Window(after=after))
            if name in subject.separates:
                with pytest.raises(Invalid) as refusal:
                    await call
                assert refusal.value.field == "after"
            else:
                assert [item.key if hasattr(item, "key") else item.sk for item in (await call).items] == [
                    "b",
                    "c",
                ]


class TestRepeats:
    async def test_the_same_request_again_gets_its_first_answer(self, home: Home, subject: Subject) -> None:
        first = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        home.clock.advance(9)
        again = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        assert (again.replayed, again.created) == (True, True)
        assert again.record == first.record
        assert (await subject.get(context())) == first.record

    async def test_another_body_under_the_same_key_is_refused(self, subject: Subject) -> None:
        await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        with pytest.raises(IdempotencyKeyReused):
            await subject.put(context(), 2, condition=PRESENT, request=keyed("k", b"other"))
        assert (await subject.get(context())).value == 1

    async def test_a_repeat_answers_as_at_first_after_the_record_changed(self, subject: Subject) -> None:
        first = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        await subject.put(context(), 2, condition=at(first.record))
        again = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        assert again.record == first.record
        assert (await subject.get(context())).value == 2

    async def test_a_repeat_of_a_replacement_says_that_nothing_was_created(self, subject: Subject) -> None:
        first = await subject.put(context(), 1, condition=subject.creating)
        for replayed in (False, True):
            change = await subject.put(context(), 2, condition=at(first.record), request=keyed("k"))
            assert (change.created, change.replayed) == (False, replayed)

    async def test_repeats_around_a_deletion(self, deleting: Subject) -> None:
        first = await deleting.put(context(), 1, request=keyed("put"))
        assert not (await deleting.delete(context(), request=keyed("delete"))).replayed
        assert (await deleting.put(context(), 1, request=keyed("put"))).record == first.record
        with pytest.raises(NotFound):
            await deleting.get(context())
        await deleting.put(context(), 2)
        assert (await deleting.delete(context(), request=keyed("delete"))).replayed
        assert (await deleting.get(context())).value == 2
        with pytest.raises(IdempotencyKeyReused):
            await deleting.delete(context(), request=keyed("delete", b"If-Match"))

    async def test_a_refused_request_leaves_its_key_free(self, subject: Subject) -> None:
        await subject.put(context(), 1, condition=subject.creating)
        with pytest.raises(PreconditionFailed):
            await subject.put(context(), 2, condition=ABSENT, request=keyed("k"))
        change = await subject.put(context(), 3, condition=PRESENT, request=keyed("k", b"other"))
        assert not change.replayed

    async def test_requests_at_once_under_one_key_act_once(self, subject: Subject) -> None:
        changes = await asyncio.gather(
            *(subject.put(context(), 1, condition=subject.creating, request=keyed("k")) for _ in range(8))
        )
        assert len({change.etag for change in changes}) == 1
        assert [change.replayed for change in changes].count(False) == 1

    async def test_a_repeat_is_known_after_a_restart(self, home: Home, subject: Subject) -> None:
        first = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        await home.reopen()
        reopened = SUBJECTS[subject.name](home)
        assert await reopened.get(context()) == first.record
        again = await reopened.put(context(), 1, condition=subject.creating, request=keyed("k"))
        assert again.replayed
        assert again.record == first.record


class TestFaults:
    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    @pytest.mark.parametrize("exists", [False, True])
    async def test_a_write_whose_reply_is_lost_is_made_once(
        self, home: Home, subject: Subject, fault: Fault, *, exists: bool
    ) -> None:
        await subject.list(context())
        condition = subject.creating
        if exists:
            condition = at((await subject.put(context(), 0, condition=condition)).record)
        home.faults.script(fault)
        change = await subject.put(context(), 1, condition=condition, request=keyed("k"))
        await home.faults.late_writes_delivered()
        assert home.faults.seen[fault] == 1
        assert change.created is not exists
        assert await subject.get(context()) == change.record
        again = await subject.put(context(), 1, condition=condition, request=keyed("k"))
        assert again.record == change.record

    async def test_a_deletion_whose_reply_is_lost_is_settled_by_its_key(
        self, home: Home, deleting: Subject
    ) -> None:
        await deleting.put(context(), 1)
        home.faults.script(Fault.LOST_APPLIED)
        await deleting.delete(context(), request=keyed("k"))
        assert home.faults.seen[Fault.LOST_APPLIED] == 1
        assert (await deleting.delete(context(), request=keyed("k"))).replayed

    async def test_a_cancelled_write_is_made_whole_by_repeating_it(
        self, home: Home, subject: Subject
    ) -> None:
        await subject.list(context())
        held = home.faults.hold_next_write()
        call = subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        task = asyncio.create_task(call)
        await held.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = await subject.put(context(), 1, condition=subject.creating, request=keyed("k"))
        assert await subject.get(context()) == again.record

    @pytest.mark.parametrize("seed", range(3))
    async def test_under_many_faults_no_acknowledged_write_is_lost(
        self, home: Home, subject: Subject, seed: int
    ) -> None:
        """Each writer counts its own key up by If-Match; an unknown outcome is read before it goes on."""
        await subject.list(context())
        home.faults.plan = FaultPlan(
            write_refused=0.1,
            write_lost_unapplied=0.05,
            write_lost_applied=0.15,
            write_late=0.1,
            read_refused=0.05,
            late_s_max=0.005,
            pause_s_max=0.001,
        )
        home.faults._random.seed(seed)

        async def count_up(key: str) -> None:
            condition, value = subject.creating, 0
            for _ in range(12):
                try:
                    record = (await subject.put(context(), value, condition=condition, key=key)).record
                except (OutcomeUnknown, Unavailable):
                    continue
                except PreconditionFailed:  # An earlier attempt landed after all.
                    record = await subject.get(context(), key)
                assert record.value == value
                condition, value = at(record), value + 1
            assert (await subject.get(context(), key)).value == value - 1

        await asyncio.gather(*(count_up(f"key-{number}") for number in range(6)))
        assert home.faults.seen.total() > home.faults.seen[Fault.NONE] > 0
        await home.faults.late_writes_delivered()


@pytest.mark.parametrize(
    "body",
    [
        BlackboardInput,
        MemoryInput,
        NoteInput,
        TableRowInput,
        NewEvent,
        NewEvents,
        NewStreamEvent,
        SessionInput,
        SessionPatch,
        MessageInput,
        CheckpointInput,
        ForkInput,
        TraceInput,
        AgentMemoryInput,
        TokensInput,
    ],
)
def test_a_body_has_no_member_that_its_type_does_not_name(body: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"etag": "x"}', type=body)
