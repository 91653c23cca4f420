"""Definitions are moved while they change: every version is there, and the spine is told of each once."""

from __future__ import annotations

import asyncio
import itertools

import engines
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import Conflict, PreconditionFailed
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import EventFilter
from tests.moves.conftest import OWNER, Open, ended

PAGES = SCHEMA_NAMED["pages"]
WRITERS = 6
# So that the processes, which share a loop here, have time for their leases.
PACE_S = 0.01


class Author:
    """Writes versions of one page, each under a slug of its own, now by one process and now by another."""

    def __init__(self, number: int, processes: list[engines.Engines]) -> None:
        self.id = f"page{number}"
        self._processes = itertools.cycle(processes)
        self.etag = ""
        self.version = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            condition = Condition(versions=(self.etag,)) if self.version else Condition(absent=True)
            body = DefinitionInput(json_blob={"slug": f"{self.id}-{self.version + 1}"})
            change = await next(self._processes).definitions.put(
                OWNER, PAGES, self.id, body, condition=condition
            )
            self.etag, self.version = change.etag.strip('"'), change.record.version
            await asyncio.sleep(PACE_S)


async def told(process: engines.Engines) -> list[tuple[str, int]]:
    """Of which versions the spine was told, in its order."""
    found: list[tuple[str, int]] = []
    after: str | None = None
    while True:
        window = Window(limit=1_000, after=after)
        listed = await process.spine.list(OWNER, EventFilter(event_type="audit"), window=window)
        found += [
            (payload["id"], payload["version"])
            for event in listed.items
            if (payload := event.payload or {}).get("definition") == "pages"
        ]
        after = listed.after
        if after is None:
            return found


async def test_every_version_is_there_and_told_once_through_two_moves(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    authors = [Author(number, processes) for number in range(WRITERS)]
    stop = asyncio.Event()
    working = [asyncio.create_task(author.run(stop)) for author in authors]
    for target in ("b", "a"):
        stored = await processes[0].moves.start(OWNER, "page_content_store", target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
    stop.set()
    await asyncio.gather(*working)
    expected = {(author.id, number) for author in authors for number in range(1, author.version + 1)}
    async with asyncio.timeout(30):
        while True:
            found = await told(processes[0])
            if len(found) >= len(expected):
                break
            await asyncio.sleep(0.05)
    assert sorted(found) == sorted(expected)
    for author in authors:
        assert [number for name, number in found if name == author.id] == list(range(1, author.version + 1))
        present = await processes[1].definitions.get(OWNER, PAGES, author.id)
        assert (present.version, present.etag) == (author.version, f'"{author.etag}"')
        await check_slugs(processes[0], author)


async def check_slugs(process: engines.Engines, author: Author) -> None:
    """The present slug is taken, and those before it are free."""
    for number, is_free in ((author.version, False), (author.version - 1, True)):
        body = DefinitionInput(json_blob={"slug": f"{author.id}-{number}"})
        try:
            change = await process.definitions.create(OWNER, PAGES, body)
        except (Conflict, PreconditionFailed):
            assert not is_free
        else:
            assert is_free
            condition = Condition(versions=(change.etag.strip('"'),))
            await process.definitions.delete(OWNER, PAGES, change.record.id, condition=condition)
