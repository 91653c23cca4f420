"""What one place holds of a user, document by document, and under faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest

from engines import catalogue
from engines.codec import encode_json
from engines.core.keys import join
from engines.errors import EnginesError
from engines.ports.documents import ABSENT, ALWAYS, Delete, Doc, Put
from engines.stores.erasing import ERASED, Erasing, Step, erased, name_of
from engines.stores.events import EventSpine, NewEvent
from engines.stores.notes import NoteInput, Notes
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.stores.home import Home, context
from tests.stores.ticking import ticking

ADA, BOB = context(user_id="ada"), context(user_id="bob")
GONE = "gone"
WHATS: tuple[Literal["documents", "log"], ...] = ("documents", "log")


def doc(key: str, body: Any) -> Doc:
    return Doc(key, encode_json(body), "v1", 1_900_000_000)


@pytest.mark.parametrize(
    ("kind", "key", "body", "expected"),
    [
        (catalogue.NOTES, "n!ada!1", {}, GONE),
        (catalogue.NOTES, "n!bob!ada", {}, None),
        (catalogue.SESSION_MEMORY, "s!ada!s1!-!k", {}, GONE),
        (catalogue.SESSION_MEMORY, "s!bob!ada!-!k", {}, None),
        (catalogue.CHECKPOINTS, "i!bob!ada!0000000001", {"record": {"state": {"user_id": "ada"}}}, None),
        (
            catalogue.CHECKPOINTS,
            "k!1",
            {"answer": {"record": {"user_id": "bob", "state": {"user_id": "ada", "reviewers": ["ada"]}}}},
            None,
        ),
        (catalogue.SESSIONS, "s!ada!1", {}, GONE),
        (catalogue.SESSIONS, "h!ada!1", {}, GONE),
        (catalogue.SESSIONS, "i!ada!1!0000000001", {}, GONE),
        (catalogue.SESSIONS, "s!bob!ada", {"record": {"user_id": "bob", "title": "ada"}}, None),
        (catalogue.SESSIONS, "i!bob!1!0000000001", {"record": {"user_id": "bob", "content": "ada"}}, None),
        (catalogue.CHECKPOINTS, "h!ada!1", {}, GONE),
        (catalogue.CHECKPOINTS, "i!ada!1!0000000001", {}, GONE),
        (catalogue.TRACES, "h!ada!1", {}, GONE),
        (catalogue.TRACES, "i!ada!1!0000000001", {}, GONE),
        (catalogue.TRACES, "i!bob!ada!0000000001", {"record": {"attributes": {"user_id": "ada"}}}, None),
        (catalogue.AGENT_MEMORY, "a!ada!episodes!k", {}, GONE),
        (catalogue.AGENT_MEMORY, "a!bob!episodes!ada", {"record": {"value": "ada"}}, None),
        (catalogue.TELEMETRY, "c!ada!2026-11-21!-", {}, GONE),
        (catalogue.TELEMETRY, "c!bob!2026-11-21!ada", {"record": {"session_id": "ada"}}, None),
        (catalogue.SESSIONS, "k!1", {"request": "d", "answer": {"record": {"user_id": "ada"}}}, GONE),
        (catalogue.TABLES, "t!people!ada!x", {}, GONE),
        (catalogue.TABLES, "t!people!x!ada", {}, GONE),
        (catalogue.TABLES, "t!ada!x!y", {}, None),
        (catalogue.FLAGS, "d!flags!ada!-!ada", {}, None),
        (catalogue.EVENT_SPINE, "x!user_id!ada!000000000001", {}, GONE),
        (catalogue.EVENT_SPINE, "x!run_id!ada!000000000001", {}, None),
        (catalogue.ANALYTICS, "x!spine-1!user_id!ada!000000000001", {}, GONE),
        (catalogue.TABLES, "t!a!b!c", {"record": {"user_id": "bob", "value": "ada"}}, None),
        (catalogue.TABLES, "t!a!b!c", {"record": {"surface_id": "ada"}}, None),
        (catalogue.TABLES, "t!a!b!c", {"record": {"user_id": "bob", "value": {"user_id": "ada"}}}, None),
        (catalogue.NOTES, "n!bob!1", {"record": {"user_id": "bob", "source": {"created_by": "ada"}}}, None),
        (
            catalogue.TABLES,
            "t!a!b!c",
            {"record": {"user_id": "ada", "value": {"user_id": "ada"}}},
            {"record": {"user_id": ERASED, "value": {"user_id": "ada"}}},
        ),
        (
            catalogue.FIREARMS,
            "d!firearms-grants!-!-!g",
            {"record": {"user_id": "bob", "json_blob": {"class_id": "c", "user_id": "ada"}}},
            {"record": {"user_id": "bob", "json_blob": {"class_id": "c", "user_id": ERASED}}},
        ),
        (
            catalogue.FIREARMS,
            "v!d!firearms-grants!-!-!g!0000000001",
            {"record": {"user_id": "ada", "json_blob": None}},
            {"record": {"user_id": ERASED, "json_blob": None}},
        ),
        (
            catalogue.STRATEGY_LOCKS,
            "d!strategy-locks!-!-!l",
            {
                "record": {
                    "user_id": "bob",
                    "state": {
                        "decided_by": "ada",
                        "note": "n",
                        "review": {"reviewers": ["ada", "eve"], "note": "r"},
                    },
                }
            },
            {
                "record": {
                    "user_id": "bob",
                    "state": {
                        "decided_by": ERASED,
                        "note": ERASED,
                        "review": {"reviewers": [ERASED, "eve"], "note": ERASED},
                    },
                }
            },
        ),
        (
            catalogue.STRATEGY_LOCKS,
            "d!strategy-locks!-!-!l",
            {"record": {"user_id": "bob", "state": {"proposed_by": ["ada", "bob"]}}},
            {"record": {"user_id": "bob", "state": {"proposed_by": [ERASED, "bob"]}}},
        ),
        (
            catalogue.BLACKBOARD,
            "b!-!run!k",
            {"record": {"user_id": "ada", "value": {"a": 1}}, "oldest": 1},
            {"record": {"user_id": ERASED, "value": None}, "oldest": 1},
        ),
        (catalogue.BLACKBOARD, "b!-!r!k", {"record": {"user_id": "bob", "value": {"user_id": "ada"}}}, None),
        (
            catalogue.FIREARMS,
            "a!1",
            {
                "record": {
                    "user_id": "ada",
                    "requested_by": "bob",
                    "key_made_by": ["carol", "ada"],
                    "reason": "r",
                    "answer": {"answered_by": "ada", "note": "n"},
                }
            },
            {
                "record": {
                    "user_id": ERASED,
                    "requested_by": "bob",
                    "key_made_by": ["carol", ERASED],
                    "reason": "r",
                    "answer": {"answered_by": ERASED, "note": ERASED},
                }
            },
        ),
        (
            catalogue.REALTIME,
            "r!thread!t",
            {
                "version": 3,
                "seats": {
                    "ada": {"record": {"user_id": "ada", "created_by": "bob"}},
                    "bob": {"record": {"user_id": "bob", "created_by": "ada", "updated_by": "bob"}},
                    "eve": {"record": {"user_id": "eve", "created_by": "bob"}},
                },
            },
            {
                "version": 3,
                "seats": {
                    "bob": {"record": {"user_id": "bob", "created_by": ERASED, "updated_by": "bob"}},
                    "eve": {"record": {"user_id": "eve", "created_by": "bob"}},
                },
            },
        ),
        (catalogue.REALTIME, "r!thread!ada", {"version": 1, "seats": {"bob": {"record": {}}}}, None),
        (
            catalogue.REALTIME,
            "k!1",
            {"answer": {"record": {"user_id": "ada", "role": "host"}}},
            {"answer": {"record": {"user_id": ERASED, "role": "host"}}},
        ),
        (catalogue.NOTES, "k!1", {"request": "d", "answer": {"record": {"user_id": "ada"}}}, GONE),
        (catalogue.NOTES, "k!1", {"request": "d", "answer": {"user_id": "bob"}}, None),
        (
            catalogue.FLAGS,
            "k!1",
            {"answer": {"record": {"user_id": "bob", "created_by": "ada"}}},
            {"answer": {"record": {"user_id": "bob", "created_by": ERASED}}},
        ),
    ],
)
def test_what_becomes_of_a_document(kind: str, key: str, body: Any, expected: Any) -> None:
    op = erased(kind, doc(key, body), "ada")
    if expected is None:
        assert op is None
    elif expected == GONE:
        assert isinstance(op, Delete)
        assert op.when.version == "v1"  # type: ignore[union-attr]
    else:
        assert isinstance(op, Put)
        assert json.loads(op.body) == expected
        assert op.expires_at == 1_900_000_000


def test_documents_come_before_logs_whatever_they_are_called() -> None:
    """What waits in a document to be told is met there, or in the log that is read afterwards."""
    steps = [
        Step(kind=kind, what=what, target="t", place=f"{kind} prod a 0")
        for kind in ("a_store", "event_spine", "z_store")
        for what in WHATS
    ]
    ordered = sorted(steps, key=lambda step: step.name)
    assert [step.what for step in ordered] == ["documents"] * 3 + ["log"] * 3


class Walk:
    """One erasing process on a home, which begins again wherever it is refused."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.erasing = Erasing(home, home.ids, home.clock)

    async def passed(self, kind: str, user_id: str = "ada") -> int:
        """One pass over a kind; what it met."""
        found = 0
        for step in await self._insist(lambda: self.erasing.steps(ADA, kind)):
            after: str | None = None
            while True:
                taken = await self._insist(
                    lambda step=step, after=after: self.erasing.take(ADA, step, after, user_id)
                )
                found += taken.removed + taken.rewritten + taken.redacted + taken.waiting
                after = taken.after
                if after is None:
                    break
        return found

    async def _insist(self, call: Any) -> Any:
        while True:
            try:
                return await call()
            except EnginesError:
                continue


@pytest.fixture
async def walk(home: Home) -> Any:
    walk = Walk(home)
    yield walk
    await walk.erasing.close()


async def test_faults_leave_nothing_behind_and_nothing_else_is_touched(
    home: Home, walk: Walk, notes: Notes, spine: EventSpine
) -> None:
    for number in range(120):
        who = (ADA, BOB)[number % 2]
        await notes.create(who, NoteInput(content=f"{number}"))
    for number in range(30):
        events = [NewEvent(event_type="note", payload={"n": n}) for n in range(5)]
        await spine.append((ADA, BOB)[number % 2], events)
    bobs = (await notes.list(BOB)).items
    time = asyncio.create_task(ticking(home.clock))
    home.faults.script(Fault.REFUSED, Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE)
    home.faults.plan = FaultPlan(
        write_refused=0.1, write_lost_applied=0.1, write_late=0.05, read_refused=0.05
    )
    try:
        await walk.passed(catalogue.NOTES)
        await walk.passed(catalogue.EVENT_SPINE)
    finally:
        home.faults.plan = NO_FAULTS
        time.cancel()
    await home.faults.late_writes_delivered()
    for kind in (catalogue.NOTES, catalogue.EVENT_SPINE):
        while await walk.passed(kind):
            pass
    assert (await notes.list(ADA)).items == ()
    assert (await notes.list(BOB)).items == bobs
    listed = (await spine.list(ADA)).items
    assert {event.user_id for event in listed if event.payload is not None} == {"bob"}
    verified = await spine.verify(ADA)
    assert (verified.ok, verified.redacted_count) == (True, 75)


@pytest.mark.parametrize(
    "waiting",
    [
        {"event_type": "audit", "user_id": "ada", "payload": {}},
        {"event_type": "audit", "user_id": "bob", "payload": {"requested_by": "ada"}},
    ],
)
async def test_what_waits_to_be_told_is_left_and_counted(
    home: Home, walk: Walk, waiting: dict[str, Any]
) -> None:
    place = await home.place(catalogue.NOTES, ADA)
    (partition, *_) = await place.partitions()
    message = encode_json(waiting)
    key = join("o", "g", "r", "0000000001", "salt")
    await home.documents.write(partition, [Put(key, message, ABSENT)])
    assert await walk.passed(catalogue.NOTES) == 1
    assert await home.documents.get(partition, key) is not None
    await home.documents.write(partition, [Delete(key, ALWAYS)])
    assert await walk.passed(catalogue.NOTES) == 0


async def test_a_step_of_another_place_is_refused(home: Home, walk: Walk) -> None:
    place = await home.place(catalogue.NOTES, ADA)
    step = Step(kind=catalogue.NOTES, what="documents", target="x", place=name_of(place))
    home.generation = 1
    with pytest.raises(EnginesError, match="another place"):
        await walk.erasing.take(ADA, step, None, "ada")


async def test_what_was_changed_meanwhile_is_met_again(home: Home, walk: Walk, notes: Notes) -> None:
    await notes.create(ADA, NoteInput(content="x"))
    held = home.faults.hold_next_write()
    first = asyncio.create_task(walk.passed(catalogue.NOTES))
    await held.arrived()
    assert await walk.passed(catalogue.NOTES) == 1
    held.release()
    assert await first == 1, "what another one erased counts as waiting, so the pass proves nothing"
    assert await walk.passed(catalogue.NOTES) == 0
