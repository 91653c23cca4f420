"""Rooms are moved while people come and go: nobody is let in or out by it, and each change is told once."""

from __future__ import annotations

import asyncio

from engines.core.listing import Window
from engines.stores.events import EventFilter
from engines.stores.realtime_rooms import RoomMemberInput
from tests.contexts import PERMISSIONS_OF, context
from tests.moves.conftest import OWNER, Open, ended

ROOM = ("thread", "t")
HOST, READER = (RoomMemberInput(role=role) for role in ("host", "reader"))
STRANGER = context(user_id="eve", roles=("member",), permissions=PERMISSIONS_OF["member"])
# So that the processes, which share a loop here, have time for their leases.
PACE_S = 0.01


async def test_who_is_in_stays_so_through_two_moves_and_is_told_once(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    first = (await processes[0].realtime.put(OWNER, *ROOM, OWNER.user_id, HOST)).record
    stop, changes = asyncio.Event(), 1

    async def come_and_go(number: int) -> None:
        nonlocal changes
        guest = f"guest{number}"
        while not stop.is_set():
            await processes[number].realtime.put(OWNER, *ROOM, guest, READER)
            await processes[number].realtime.delete(OWNER, *ROOM, guest)
            changes += 2
            await asyncio.sleep(PACE_S)
        await processes[number].realtime.put(OWNER, *ROOM, guest, READER)
        changes += 1

    working = [asyncio.create_task(come_and_go(number)) for number in range(2)]
    for target in ("b", "a"):
        stored = await processes[0].moves.start(OWNER, "realtime_registry", target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
    stop.set()
    await asyncio.gather(*working)
    for process in processes:
        members = (await process.realtime.list(STRANGER, *ROOM)).items
        assert [(one.user_id, one.role) for one in members] == [
            ("guest0", "reader"),
            ("guest1", "reader"),
            (OWNER.user_id, "host"),
        ]
        assert members[-1] == first
    async with asyncio.timeout(30):
        while True:
            window = Window(limit=1_000)
            listed = await processes[0].spine.list(OWNER, EventFilter(event_type="audit"), window=window)
            payloads = [event.payload or {} for event in listed.items]
            told = [one["version"] for one in payloads if one.get("record") == "room"]
            if len(told) >= changes or listed.after is not None:
                break
            await asyncio.sleep(0.05)
    assert told == list(range(1, len(told) + 1))
    assert len(told) == changes or listed.after is not None
