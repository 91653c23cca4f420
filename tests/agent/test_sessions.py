"""Rules of sessions and their messages: whose they are, in which order, and how all of one goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engines import catalogue
from engines.agent import messages, sequences
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.memory import AgentMemoryInput
from engines.agent.messages import MESSAGES_BYTES_MAX, MESSAGES_MAX, MessageInput
from engines.agent.sequences import CLOSED_S, item_id, parts_of
from engines.agent.sessions import SessionInput, SessionPatch
from engines.agent.stores import AgentStores
from engines.agent.telemetry import TokensInput
from engines.core.journal import Journalled
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import (
    BackendRefused,
    Conflict,
    ContextMismatch,
    EnginesError,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    PreconditionFailed,
    TooLarge,
)
from engines.ports.documents import OPS_MAX
from engines.testing.faults import Fault, FaultPlan
from tests.agent.talking import ADA, BOB, at_once, begun, heard, person, said, stops, stored_keys
from tests.agent.test_traces import TRACE
from tests.stores.home import Home
from tests.stores.subjects import keyed
from tests.torn import torn

STATE = CheckpointInput(state={"step": 1})


def matching(etag: str) -> Condition:
    return Condition(versions=(etag.strip('"'),))


async def furnished(agent: AgentStores, *texts: str) -> str:
    """A session with messages, two checkpoints and two traces."""
    session_id = (await begun(agent, *(texts or ("hello", "good day")))).session_id
    for _ in range(2):
        await agent.checkpoints.save(ADA, session_id, STATE)
        await agent.traces.record(ADA, session_id, TRACE)
    return session_id


class TestSessions:
    async def test_it_is_there_after_a_restart_and_lists_by_creation(
        self, home: Home, agent: AgentStores
    ) -> None:
        made = []
        for title in ("first", "second", "third"):
            made.append(await begun(agent, title, title=title))
            home.clock.advance(1)
        await home.reopen()
        assert await agent.sessions.get(ADA, made[1].session_id) == made[1]
        assert await heard(agent, made[1].session_id) == ["second"]
        page = await agent.sessions.list(ADA, window=Window(limit=2))
        assert page.items == tuple(made[:2])
        rest = await agent.sessions.list(ADA, window=Window(after=page.after))
        assert rest.items == (made[2],)
        assert rest.after is None

    async def test_it_says_who_where_and_when(self, agent: AgentStores) -> None:
        who = person("ada", project_id="p1", thread_id="th")
        made = (await agent.sessions.create(who, SessionInput(title="t", metadata={"model": "m"}))).record
        assert (made.user_id, made.project_id, made.thread_id) == ("ada", "p1", "th")
        assert (made.title, made.metadata, made.status) == ("t", {"model": "m"}, "active")
        assert made.created_at == made.updated_at
        assert made.forked_from is None

    async def test_it_is_its_users_alone(self, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        asked: list[Callable[[], object]] = [
            lambda: agent.sessions.get(BOB, session_id),
            lambda: agent.sessions.patch(BOB, session_id, SessionPatch(title="mine")),
            lambda: agent.sessions.delete(BOB, session_id),
            lambda: agent.messages.list(BOB, session_id),
            lambda: agent.messages.append(BOB, session_id, said("hi")),
            lambda: agent.checkpoints.list(BOB, session_id),
            lambda: agent.checkpoints.save(BOB, session_id, STATE),
            lambda: agent.checkpoints.get(BOB, item_id(session_id, 1)),
            lambda: agent.traces.list(BOB, session_id),
            lambda: agent.traces.record(BOB, session_id, TRACE),
            lambda: agent.traces.get(BOB, item_id(session_id, 1)),
        ]
        for ask in asked:
            with pytest.raises(NotFound):
                await ask()  # type: ignore[misc]
        assert (await agent.sessions.list(BOB)).items == ()
        other_tenant = person("ada", tenant_id="t_two")
        with pytest.raises(NotFound):
            await agent.sessions.get(other_tenant, session_id)

    async def test_a_viewer_reads_and_changes_nothing(self, agent: AgentStores) -> None:
        session_id = (await begun(agent, "hello")).session_id
        viewer = person("ada", "viewer")
        assert await heard(agent, session_id, who=viewer) == ["hello"]
        for change in (
            agent.sessions.create(viewer, SessionInput()),
            agent.sessions.patch(viewer, session_id, SessionPatch(title="x")),
            agent.sessions.delete(viewer, session_id),
            agent.messages.append(viewer, session_id, said("x")),
            agent.checkpoints.save(viewer, session_id, STATE),
            agent.traces.record(viewer, session_id, TRACE),
        ):
            with pytest.raises(Forbidden):
                await change

    async def test_a_patch_changes_what_it_names(self, home: Home, agent: AgentStores) -> None:
        made = (await agent.sessions.create(ADA, SessionInput(title="a", metadata={"k": 1}))).record
        home.clock.advance(1)
        other = person("ada", surface_id="canvas")
        patched = (await agent.sessions.patch(other, made.session_id, SessionPatch(title="b"))).record
        assert (patched.title, patched.metadata, patched.surface_id) == ("b", {"k": 1}, "chat")
        assert patched.created_at == made.created_at < patched.updated_at
        assert patched.etag != made.etag
        emptied = await agent.sessions.patch(ADA, made.session_id, SessionPatch(metadata={}))
        assert (emptied.record.title, emptied.record.metadata) == ("b", {})
        with pytest.raises(PreconditionFailed):
            await agent.sessions.patch(
                ADA, made.session_id, SessionPatch(title="c"), condition=matching(made.etag)
            )

    async def test_what_is_said_leaves_the_etag(self, agent: AgentStores) -> None:
        made = await begun(agent, "hello")
        assert (await agent.sessions.get(ADA, made.session_id)).etag == made.etag

    async def test_a_repeat_gets_the_first_session(self, agent: AgentStores) -> None:
        first = await agent.sessions.create(ADA, SessionInput(title="a"), request=keyed("c"))
        again = await agent.sessions.create(ADA, SessionInput(title="a"), request=keyed("c"))
        assert (again.record, again.replayed) == (first.record, True)
        with pytest.raises(IdempotencyKeyReused):
            await agent.sessions.create(ADA, SessionInput(title="b"), request=keyed("c", b"other"))
        assert len((await agent.sessions.list(ADA)).items) == 1

    async def test_identity_in_a_body_is_checked(self, agent: AgentStores) -> None:
        with pytest.raises(ContextMismatch):
            await agent.sessions.create(ADA, SessionInput(user_id="bob"))

    async def test_no_body_names_anybody_else(self, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        other: dict[str, Any] = {"user_id": "bob"}
        for change in (
            agent.sessions.patch(ADA, session_id, SessionPatch(title="x", **other)),
            agent.messages.append(ADA, session_id, said("x", **other)),
            agent.checkpoints.save(ADA, session_id, CheckpointInput(state=1, **other)),
            agent.forks.fork(ADA, item_id(session_id, 1), ForkInput(**other)),
            agent.traces.record(ADA, session_id, msgspec.structs.replace(TRACE, **other)),
            agent.memory.set(ADA, "episodes", "k", AgentMemoryInput(value=1, **other)),
            agent.telemetry.count(ADA, TokensInput(provider="p", model="m", **other)),
        ):
            with pytest.raises(ContextMismatch):
                await change

    async def test_without_a_route_there_is_no_session(self, home: Home, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        home.missing = {catalogue.CHECKPOINTS}
        with pytest.raises(MissingRoute):
            await agent.checkpoints.save(ADA, session_id, STATE)
        home.missing = {catalogue.SESSIONS}
        with pytest.raises(MissingRoute):
            await agent.sessions.create(ADA, SessionInput())


class TestMessages:
    async def test_they_are_numbered_in_order(self, agent: AgentStores) -> None:
        session_id = (await begun(agent, "a", "b", "c")).session_id
        listed = (await agent.messages.list(ADA, session_id)).items
        assert [(message.number, message.content) for message in listed] == [(1, "a"), (2, "b"), (3, "c")]
        assert [message.message_id for message in listed] == [item_id(session_id, n) for n in (1, 2, 3)]
        backwards = await agent.messages.list(ADA, session_id, window=Window(limit=2, descending=True))
        assert [message.content for message in backwards.items] == ["c", "b"]

    async def test_a_poller_keeps_its_place_by_any_cursor(self, agent: AgentStores) -> None:
        session_id = (await begun(agent, "a", "b")).session_id
        last = (await agent.messages.list(ADA, session_id)).items[-1]
        appended = (await agent.messages.append(ADA, session_id, said("c"))).record
        news = (await agent.messages.list(ADA, session_id, window=Window(after=last.cursor))).items
        assert news == (appended,)
        other = (await begun(agent, "x")).session_id
        with pytest.raises(Invalid):
            await agent.messages.list(ADA, other, window=Window(after=last.cursor))

    async def test_all_that_a_message_says_is_kept(self, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        calls = [{"id": "c1", "name": "book", "arguments": {"seats": 2}}]
        told = [
            MessageInput(role="system", content="be kind", name="house"),
            MessageInput(role="assistant", content=None, tool_calls=calls),
            MessageInput(role="tool", content=[{"type": "text", "text": "ok"}], tool_call_id="c1"),
            MessageInput(role="user", content={"parts": []}, metadata={"from": "phone"}),
        ]
        for message in told:
            await agent.messages.append(ADA, session_id, message)
        for message, kept in zip(told, (await agent.messages.list(ADA, session_id)).items, strict=True):
            for member in ("role", "content", "name", "tool_calls", "tool_call_id", "metadata"):
                assert getattr(kept, member) == getattr(message, member)

    @pytest.mark.parametrize(
        ("message", "field"),
        [
            (said("x", "user", tool_calls=[{}]), "tool_calls"),
            (said("x", "tool"), "tool_call_id"),
            (said("x", "assistant", tool_call_id="c1"), "tool_call_id"),
            (said("x", "robot"), "role"),
            (MessageInput(role="user", content=float("nan")), "content"),
            (said("x", metadata={"n": 2**70}), "metadata"),
            (said("x", name=""), "name"),
        ],
    )
    async def test_a_malformed_one_is_refused(
        self, agent: AgentStores, message: MessageInput, field: str
    ) -> None:
        session_id = (await begun(agent)).session_id
        with pytest.raises(Invalid) as refused:
            await agent.messages.append(ADA, session_id, message)
        assert refused.value.field == field
        assert await heard(agent, session_id) == []

    async def test_of_many_at_once_each_gets_its_own_number(self, home: Home, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        texts = [f"m{number}" for number in range(12)]
        await asyncio.gather(*(agent.messages.append(ADA, session_id, said(text)) for text in texts))
        listed = (await agent.messages.list(ADA, session_id)).items
        assert [message.number for message in listed] == list(range(1, 13))
        assert sorted(message.content for message in listed) == sorted(texts)

    async def test_a_repeat_says_nothing_twice(self, home: Home, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        home.faults.script(Fault.LOST_APPLIED)
        first = await agent.messages.append(ADA, session_id, said("once"), request=keyed("m"))
        await agent.messages.append(ADA, session_id, said("then"))
        again = await agent.messages.append(ADA, session_id, said("once"), request=keyed("m"))
        assert (again.record, again.replayed) == (first.record, True)
        assert await heard(agent, session_id) == ["once", "then"]

    async def test_a_repeat_that_meets_its_first_attempt_is_answered(
        self, agent: AgentStores, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(messages, "RULES", msgspec.structs.replace(messages.RULES, count_max=1))
        session_id = (await begun(agent)).session_id
        torn(
            home.documents,
            monkeypatch,
            lambda: agent.messages.append(ADA, session_id, said("once"), request=keyed("m")),
        )
        monkeypatch.setattr(messages, "RULES", msgspec.structs.replace(messages.RULES, count_max=1))
        again = await agent.messages.append(ADA, session_id, said("once"), request=keyed("m"))
        assert again.replayed
        assert await heard(agent, session_id) == ["once"]

    async def test_what_was_said_stands_once_and_goes_with_its_session(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = (await begun(agent)).session_id
        await agent.messages.append(ADA, session_id, said("secret"), request=keyed("m"))
        place = await home.place(catalogue.SESSIONS, ADA)
        marker = await home.documents.get(await place.partition("ada"), keyed("m").key)
        assert marker is not None
        assert "secret" not in marker.body
        await agent.sessions.delete(ADA, session_id)
        with pytest.raises(NotFound):
            await agent.messages.append(ADA, session_id, said("secret"), request=keyed("m"))

    async def test_a_full_session_says_so_and_keeps_what_it_has(
        self, agent: AgentStores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert messages.RULES.count_max == MESSAGES_MAX
        monkeypatch.setattr(messages, "RULES", msgspec.structs.replace(messages.RULES, count_max=2))
        session_id = (await begun(agent, "a", "b")).session_id
        with pytest.raises(Conflict, match="at most 2 messages"):
            await agent.messages.append(ADA, session_id, said("c"))
        assert await heard(agent, session_id) == ["a", "b"]

    async def test_a_session_of_much_text_says_so(
        self, agent: AgentStores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert messages.RULES.bytes_max == MESSAGES_BYTES_MAX
        monkeypatch.setattr(messages, "RULES", msgspec.structs.replace(messages.RULES, bytes_max=3_000))
        session_id = (await begun(agent, "x" * 1_500)).session_id
        checkpoint = await agent.checkpoints.save(ADA, session_id, STATE)
        await agent.messages.append(ADA, session_id, said("x" * 1_500))
        with pytest.raises(Conflict, match="3000 bytes"):
            await agent.messages.append(ADA, session_id, said("c"))
        fork = (await agent.forks.fork(ADA, checkpoint.record.checkpoint_id, ForkInput())).record
        await agent.messages.append(ADA, fork.session_id, said("x" * 1_500))
        with pytest.raises(Conflict, match="3000 bytes"):
            await agent.messages.append(ADA, fork.session_id, said("c"))

    async def test_a_message_is_as_long_as_a_record_may_be(self, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        with pytest.raises(TooLarge):
            await agent.messages.append(ADA, session_id, said("x" * 262_144), request=keyed("long"))
        await agent.messages.append(ADA, session_id, said("x" * 260_000), request=keyed("fits"))
        assert len((await heard(agent, session_id))[0]) == 260_000


class TestDeletion:
    async def test_nothing_is_left_but_closed_heads_that_lapse(self, home: Home, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        other = await furnished(agent, "stays")
        kept = [key for key in await stored_keys(home) if other in key]
        await agent.sessions.delete(ADA, session_id)
        assert [key for key in await stored_keys(home, "s", "i") if session_id in key] == []
        home.clock.advance(CLOSED_S + 1)
        assert await stored_keys(home) == kept
        with pytest.raises(NotFound):
            await agent.sessions.delete(ADA, session_id)
        assert await heard(agent, other) == ["stays"]

    async def test_stopped_before_any_write_it_shows_no_part_and_goes_on(
        self, home: Home, agent: AgentStores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sequences, "REMOVED_MAX", 1)
        prepared: list[str] = [await furnished(agent)]

        async def delete() -> None:
            await agent.sessions.delete(ADA, prepared[-1])

        seen = 0
        async for writes in stops(home, delete):
            seen, session_id = writes, prepared[-1]
            session = await agent.sessions.get(ADA, session_id)
            if writes == 0:
                assert session.status == "active"
            else:
                assert session.status == "deleting"
                assert session in (await agent.sessions.list(ADA)).items
                await self._shows_no_part(agent, session_id)
            await home.reopen()
            await agent.sessions.delete(ADA, session_id)
            assert [key for key in await stored_keys(home, "s", "i") if session_id in key] == []
            prepared.append(await furnished(agent))
        # Marked; two closed heads; two of each part, and the messages; the session.
        assert seen == 9

    async def _shows_no_part(self, agent: AgentStores, session_id: str) -> None:
        for shown in (
            agent.messages.list(ADA, session_id),
            agent.messages.append(ADA, session_id, said("late")),
            agent.checkpoints.list(ADA, session_id),
            agent.checkpoints.get(ADA, item_id(session_id, 2)),
            agent.checkpoints.save(ADA, session_id, STATE),
            agent.traces.list(ADA, session_id),
            agent.traces.get(ADA, item_id(session_id, 2)),
            agent.traces.record(ADA, session_id, TRACE),
            agent.sessions.patch(ADA, session_id, SessionPatch(title="x")),
        ):
            with pytest.raises(NotFound):
                await shown

    async def test_the_repeat_of_an_interrupted_one_finishes_it(self, home: Home, agent: AgentStores) -> None:
        session = await agent.sessions.get(ADA, await furnished(agent))
        condition = matching(session.etag)
        home.faults.script(Fault.NONE, Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.sessions.delete(ADA, session.session_id, condition=condition, request=keyed("d"))
        again = await agent.sessions.delete(ADA, session.session_id, condition=condition, request=keyed("d"))
        assert again.replayed
        assert await stored_keys(home, "s", "i") == []
        assert (await agent.sessions.delete(ADA, session.session_id, request=keyed("d"))).replayed

    async def test_what_cannot_be_finished_is_not_begun(self, home: Home, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        home.missing = {catalogue.TRACES}
        with pytest.raises(MissingRoute):
            await agent.sessions.delete(ADA, session_id)
        assert (await agent.sessions.get(ADA, session_id)).status == "active"
        assert await heard(agent, session_id) == ["hello", "good day"]

    async def test_a_repeat_that_meets_its_first_attempt_is_answered(
        self, home: Home, agent: AgentStores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session_id = await furnished(agent)
        torn(home.documents, monkeypatch, lambda: agent.sessions.delete(ADA, session_id, request=keyed("d")))
        assert (await agent.sessions.delete(ADA, session_id, request=keyed("d"))).replayed

    async def test_who_goes_on_with_it_may_repeat_their_request_too(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = await furnished(agent)
        home.faults.script(Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.sessions.delete(ADA, session_id, request=keyed("d"))
        assert not (await agent.sessions.delete(ADA, session_id, request=keyed("again"))).replayed
        for key in ("d", "again"):
            assert (await agent.sessions.delete(ADA, session_id, request=keyed(key))).replayed

    async def test_its_condition_is_judged_once(self, home: Home, agent: AgentStores) -> None:
        session = await agent.sessions.get(ADA, await furnished(agent))
        condition = matching(session.etag)
        home.faults.script(Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.sessions.delete(ADA, session.session_id, condition=condition)
        await agent.sessions.delete(ADA, session.session_id, condition=condition)
        assert await stored_keys(home, "s", "i") == []

    async def test_a_long_one_goes_while_it_is_moved(self, home: Home, agent: AgentStores) -> None:
        session_id = (await begun(agent, *map(str, range(OPS_MAX + 1)))).session_id
        place, direct = await home.place(catalogue.SESSIONS, ADA), home.documents
        shards = await place.partitions()
        home.documents = direct.through(lambda driver: Journalled(driver, shards))
        await agent.sessions.delete(ADA, session_id)
        home.documents = direct
        assert await stored_keys(home, "s", "i") == []

    async def test_a_condition_that_fails_leaves_all(self, agent: AgentStores) -> None:
        session = await agent.sessions.get(ADA, await furnished(agent))
        await agent.sessions.patch(ADA, session.session_id, SessionPatch(title="newer"))
        with pytest.raises(PreconditionFailed):
            await agent.sessions.delete(ADA, session.session_id, condition=matching(session.etag))
        assert await heard(agent, session.session_id) == ["hello", "good day"]

    async def test_what_is_on_its_way_when_it_begins_never_arrives(
        self, home: Home, agent: AgentStores
    ) -> None:
        """Each had seen the session before the deletion; their writes come after it."""
        session_id = await furnished(agent)
        late: list[Callable[[], object]] = [
            lambda: agent.messages.append(ADA, session_id, said("late")),
            lambda: agent.checkpoints.save(ADA, session_id, STATE),
            lambda: agent.traces.record(ADA, session_id, TRACE),
        ]
        held, calls = [], []
        for call in late:
            held.append(home.faults.hold_next_write())
            calls.append(asyncio.ensure_future(call()))  # type: ignore[call-overload]
            await held[-1].arrived()
        await agent.sessions.delete(ADA, session_id)
        for each in held:
            each.release()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [NotFound] * 3
        assert await stored_keys(home, "s", "i") == []

    async def test_several_at_once_delete_it_once(self, home: Home, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        outcomes = await at_once(*(agent.sessions.delete(ADA, session_id) for _ in range(4)))
        assert None in outcomes
        assert set(outcomes) <= {None, NotFound}
        assert await stored_keys(home, "s", "i") == []

    async def test_it_goes_while_others_speak(self, home: Home, agent: AgentStores) -> None:
        session_id = await furnished(agent)
        home.faults.plan = FaultPlan(pause_s_max=0.002, write_lost_applied=0.1, write_late=0.1)
        calls = [agent.messages.append(ADA, session_id, said(str(number))) for number in range(8)]
        saves = [agent.checkpoints.save(ADA, session_id, STATE) for _ in range(4)]

        async def delete() -> None:
            while True:
                try:
                    await agent.sessions.delete(ADA, session_id)
                except NotFound:
                    return
                except EnginesError:
                    continue

        await at_once(*calls, delete(), *saves)
        await home.faults.late_writes_delivered()
        assert await stored_keys(home, "s", "i") == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s.1", ("s", 1)),
        ("a.b.12", ("a.b", 12)),
        ("s", None),
        ("s.", None),
        (".1", None),
        ("s.0", None),
        ("s.01", None),
        ("s.٣", None),
        ("s.-1", None),
        ("s.12345678901", None),
    ],
)
def test_an_id_names_one_record_or_none(text: str, parts: tuple[str, int] | None) -> None:
    assert parts_of(text) == parts
