"""Rules of forks: what the new session has, that it is its own, and how an interrupted one is finished."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from engines import catalogue
from engines.agent import forks, sequences
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.sequences import item_id
from engines.agent.sessions import Session, SessionInput
from engines.agent.stores import AgentStores
from engines.core.idempotency import KEPT_S
from engines.errors import BackendRefused, Conflict, Forbidden, IdempotencyKeyReused, NotFound, TooLarge
from engines.stores.scoped import Change
from engines.testing.faults import Fault, FaultPlan, HeldWrite
from tests.agent.talking import ADA, BOB, begun, heard, person, said, stops, stored_keys
from tests.agent.test_traces import TRACE
from tests.stores.home import Home
from tests.stores.subjects import keyed

TEXTS = ("a", "b", "c", "d", "e")


async def saved(agent: AgentStores, *texts: str) -> str:
    """A checkpoint behind these messages, with one more said after it."""
    session = await agent.sessions.create(ADA, SessionInput(title="talk", metadata={"model": "m"}))
    for text in texts or TEXTS:
        await agent.messages.append(ADA, session.record.session_id, said(text))
    state = CheckpointInput(state={"at": len(texts)}, label="here")
    made = (await agent.checkpoints.save(ADA, session.record.session_id, state)).record
    await agent.messages.append(ADA, session.record.session_id, said("after"))
    return made.checkpoint_id


async def copies(
    home: Home, agent: AgentStores, checkpoint_id: str, **options: Any
) -> tuple[asyncio.Task[Change[Session]], HeldWrite]:
    """A fork under way, and its first write of messages, which waits."""
    first = home.faults.hold_next_write()
    forking = asyncio.create_task(agent.forks.fork(ADA, checkpoint_id, ForkInput(), **options))
    await first.arrived()
    copying = home.faults.hold_next_write()
    first.release()
    await copying.arrived()
    return forking, copying


@pytest.fixture
def by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a copy of five messages takes three writes."""
    monkeypatch.setattr(forks, "COPIED_MAX", 2)


class TestWhatItHas:
    async def test_the_messages_until_then_and_the_state(self, home: Home, agent: AgentStores) -> None:
        checkpoint = await agent.checkpoints.get(ADA, await saved(agent))
        fork = (await agent.forks.fork(ADA, checkpoint.checkpoint_id, ForkInput())).record
        await home.reopen()
        assert fork == await agent.sessions.get(ADA, fork.session_id)
        assert (fork.status, fork.title, fork.metadata) == ("active", "talk", {"model": "m"})
        assert fork.forked_from is not None
        assert fork.forked_from.checkpoint_id == checkpoint.checkpoint_id
        assert fork.forked_from.session_id == checkpoint.session_id
        copies = (await agent.messages.list(ADA, fork.session_id)).items
        assert [message.content for message in copies] == list(TEXTS)
        assert [message.message_id for message in copies] == [
            item_id(fork.session_id, n) for n in range(1, 6)
        ]
        assert {message.session_id for message in copies} == {fork.session_id}
        (state,) = (await agent.checkpoints.list(ADA, fork.session_id)).items
        assert (state.state, state.label, state.messages) == (checkpoint.state, "here", 5)

    async def test_a_state_that_fitted_once_fits_again_whoever_forks(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = (await begun(agent)).session_id
        whole = await agent.checkpoints.save(ADA, session_id, CheckpointInput(state="x" * 261_500))
        home.clock.advance(1)
        elsewhere = person("ada", run_id="r" * 128, thread_id="t" * 128, step_id="s" * 128, app_id="a" * 64)
        with pytest.raises(TooLarge):
            await agent.checkpoints.save(elsewhere, session_id, CheckpointInput(state="x" * 261_500))
        fork = (await agent.forks.fork(elsewhere, whole.record.checkpoint_id, ForkInput())).record
        (copied,) = (await agent.checkpoints.list(ADA, fork.session_id)).items
        assert (copied.state, copied.created_at) == (whole.record.state, whole.record.created_at)
        assert copied.checkpoint_id == item_id(fork.session_id, 1)

    async def test_what_it_says_otherwise(self, agent: AgentStores) -> None:
        told = ForkInput(title="else", metadata={})
        fork = (await agent.forks.fork(ADA, await saved(agent), told)).record
        assert (fork.title, fork.metadata) == ("else", {})

    async def test_it_is_its_own(self, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        fork = (await agent.forks.fork(ADA, checkpoint_id, ForkInput())).record
        await agent.messages.append(ADA, fork.session_id, said("elsewhere"))
        source = (await agent.checkpoints.get(ADA, checkpoint_id)).session_id
        assert await heard(agent, source) == [*TEXTS, "after"]
        await agent.sessions.delete(ADA, source)
        assert await heard(agent, fork.session_id) == [*TEXTS, "elsewhere"]

    async def test_a_fork_of_a_fork_and_of_nothing_said(self, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        empty = (await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=0))).record
        fork = (await agent.forks.fork(ADA, empty.checkpoint_id, ForkInput())).record
        again = (await agent.forks.fork(ADA, item_id(fork.session_id, 1), ForkInput())).record
        assert await heard(agent, again.session_id) == []
        await agent.messages.append(ADA, again.session_id, said("first"))
        assert await heard(agent, again.session_id) == ["first"]

    async def test_long_messages_are_copied_within_the_limits_of_a_write(self, agent: AgentStores) -> None:
        texts = [letter * 200_000 for letter in "abcdefg"]
        fork = (await agent.forks.fork(ADA, await saved(agent, *texts), ForkInput())).record
        assert await heard(agent, fork.session_id) == texts

    async def test_nobody_elses(self, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        with pytest.raises(NotFound):
            await agent.forks.fork(BOB, checkpoint_id, ForkInput())
        with pytest.raises(Forbidden):
            await agent.forks.fork(person("ada", "viewer"), checkpoint_id, ForkInput())


@pytest.mark.usefixtures("by_two")
class TestHalfWay:
    async def test_stopped_before_any_write_the_same_request_finishes_it(
        self, home: Home, agent: AgentStores
    ) -> None:
        checkpoint_id = await saved(agent)
        turns: list[int] = [0]

        async def fork() -> None:
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed(f"f{len(turns)}"))

        async for writes in stops(home, fork):
            forking = [one for one in (await agent.sessions.list(ADA)).items if one.status == "forking"]
            assert len(forking) == (writes > 0)
            for one in forking:
                for early in (
                    agent.messages.append(ADA, one.session_id, said("early")),
                    agent.checkpoints.save(ADA, one.session_id, CheckpointInput(state="early")),
                    agent.traces.record(ADA, one.session_id, TRACE),
                ):
                    with pytest.raises(Conflict, match="still being copied"):
                        await early
            await home.reopen()
            done = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed(f"f{len(turns)}"))
            assert done.replayed == (writes > 0)
            assert done.record.status == "active"
            assert await heard(agent, done.record.session_id) == list(TEXTS)
            assert len((await agent.checkpoints.list(ADA, done.record.session_id)).items) == 1
            turns.append(writes)
        # The session; three times two messages; the checkpoint; the session again.
        assert turns == [0, 0, 1, 2, 3, 4, 5]
        assert len((await agent.sessions.list(ADA)).items) == 1 + len(turns)

    async def test_lost_replies_copy_nothing_twice(self, home: Home, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        home.faults.script(*[Fault.LOST_APPLIED] * 3)
        fork = (await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))).record
        assert await heard(agent, fork.session_id) == list(TEXTS)

    async def test_one_request_sent_twice_at_once_makes_one_session(
        self, home: Home, agent: AgentStores
    ) -> None:
        checkpoint_id = await saved(agent)
        home.faults.plan = FaultPlan(pause_s_max=0.003)
        made = await asyncio.gather(
            *(agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f")) for _ in range(4))
        )
        (session_id,) = {change.record.session_id for change in made}
        assert await heard(agent, session_id) == list(TEXTS)
        assert len((await agent.checkpoints.list(ADA, session_id)).items) == 1
        assert sorted(change.replayed for change in made) == [False, True, True, True]

    async def test_the_first_session_may_go_meanwhile(self, home: Home, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        home.faults.script(Fault.NONE, Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        source, forking = (await agent.sessions.list(ADA)).items
        await agent.sessions.delete(ADA, source.session_id)
        with pytest.raises(NotFound):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        assert (await agent.sessions.get(ADA, forking.session_id)).status == "forking"
        await agent.sessions.delete(ADA, forking.session_id)
        assert await stored_keys(home, "s", "i") == []

    async def test_of_a_first_session_that_goes_meanwhile_nothing_is_copied_out_of_turn(
        self, home: Home, agent: AgentStores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sequences, "REMOVED_MAX", 3)
        checkpoint_id = await saved(agent)
        source = (await agent.checkpoints.get(ADA, checkpoint_id)).session_id
        forking, copying = await copies(home, agent, checkpoint_id)
        # Marked; a head closed, its checkpoint removed; the traces' layout and head; three messages of six.
        home.faults.script(*[Fault.NONE] * 6, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.sessions.delete(ADA, source)
        copying.release()
        with pytest.raises(Conflict, match="deleted meanwhile"):
            await forking
        (one,) = [one for one in (await agent.sessions.list(ADA)).items if one.status == "forking"]
        assert await heard(agent, one.session_id) == ["a", "b"]

    @pytest.mark.parametrize("writes", [1, 9], ids=["marked", "gone"])
    async def test_it_may_itself_be_deleted_meanwhile(
        self, home: Home, agent: AgentStores, writes: int
    ) -> None:
        forking, copying = await copies(home, agent, await saved(agent))
        (one,) = [one for one in (await agent.sessions.list(ADA)).items if one.status == "forking"]
        home.faults.script(*[Fault.NONE] * writes, Fault.FORBIDDEN)
        with contextlib.suppress(BackendRefused):
            await agent.sessions.delete(ADA, one.session_id)
        home.faults.forget_script()
        copying.release()
        with pytest.raises(NotFound):
            await forking
        with contextlib.suppress(NotFound):
            await agent.sessions.delete(ADA, one.session_id)
        assert [key for key in await stored_keys(home, "s", "i") if one.session_id in key] == []

    async def test_a_repeat_may_be_done_first_and_others_go_on(self, home: Home, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        forking, copying = await copies(home, agent, checkpoint_id, request=keyed("f"))
        done = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        await agent.messages.append(ADA, done.record.session_id, said("next"))
        copying.release()
        assert (await forking).record == done.record
        assert await heard(agent, done.record.session_id) == [*TEXTS, "next"]

    async def test_a_whole_copy_is_finished_without_what_it_is_made_from(
        self, home: Home, agent: AgentStores
    ) -> None:
        checkpoint_id = await saved(agent)
        # The session; three times two messages; the checkpoint.
        home.faults.script(*[Fault.NONE] * 5, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        await agent.sessions.delete(ADA, (await agent.sessions.list(ADA)).items[0].session_id)
        done = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        assert (done.record.status, done.replayed) == ("active", True)
        assert await heard(agent, done.record.session_id) == list(TEXTS)

    async def test_it_is_done_though_a_repeats_checkpoint_is_pruned_already(
        self, home: Home, agent: AgentStores
    ) -> None:
        home.options[catalogue.CHECKPOINTS] = {"checkpoints_kept": 1}
        checkpoint_id = await saved(agent)
        forking, copying = await copies(home, agent, checkpoint_id, request=keyed("f"))
        done = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        await agent.checkpoints.save(ADA, done.record.session_id, CheckpointInput(state="newer"))
        copying.release()
        assert (await forking).record == done.record

    async def test_a_session_that_is_being_deleted_is_no_answer(self, home: Home, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        home.faults.script(Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        home.faults.script(Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.sessions.delete(ADA, (await agent.sessions.list(ADA)).items[1].session_id)
        with pytest.raises(NotFound):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))

    async def test_a_key_may_be_used_again_when_it_has_lapsed(self, home: Home, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        home.faults.script(Fault.NONE, Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        home.clock.advance(KEPT_S - 3_600)
        first = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        home.clock.advance(7_200)
        second = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        assert (first.replayed, second.replayed) == (True, False)
        assert first.record.session_id != second.record.session_id
        assert second.record.status == "active"

    async def test_a_repeat_is_answered_whatever_became_of_the_two(self, agent: AgentStores) -> None:
        checkpoint_id = await saved(agent)
        first = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        with pytest.raises(IdempotencyKeyReused):
            await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f", b"other"))
        source = (await agent.checkpoints.get(ADA, checkpoint_id)).session_id
        await agent.sessions.delete(ADA, source)
        again = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        assert (again.record, again.replayed) == (first.record, True)
        await agent.sessions.delete(ADA, first.record.session_id)
        gone = await agent.forks.fork(ADA, checkpoint_id, ForkInput(), request=keyed("f"))
        assert (gone.record, gone.replayed) == (first.record, True)
