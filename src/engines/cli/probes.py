"""What `engines doctor` writes on each kind, reads back and removes.

Owns one probe a kind, through the same API as everybody's data. Leaves order, restarts and reporting to
`cli/doctor.py`. Logs are append-only and a blackboard keeps what was written, so those probes leave one small
record behind, named after the doctor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from engines import catalogue
from engines.client import AsyncEngines, NewEvent, NewNote
from engines.errors import Corrupt, NotFound

NAME: Final = "engines-doctor"
EVENT_TYPE: Final = "doctor"
# A probe of session memory that is never removed removes itself.
MEMORY_TTL_S: Final = 3_600


class Probe(Protocol):
    """One kind's probe. `mark` is an id of its own for each run of the doctor."""

    leaves: bool
    """Whether the kind keeps what was written."""

    reads_only: bool
    """Whether the probe writes nothing."""

    async def write(self, client: AsyncEngines, mark: str) -> None:
        """Write the record that says `mark`."""

    async def read(self, client: AsyncEngines, mark: str) -> None:
        """Read it back. Raises Corrupt where it says something else."""

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """Remove it. Raises for what a removal may raise; does nothing where the kind keeps records."""


def _compare(found: Any, mark: str) -> None:
    if found != value_of(mark):
        raise Corrupt("what was read is not what was written")


def value_of(mark: str) -> dict[str, Any]:
    """What every probe writes: text beyond ASCII, a number beyond 32 bits, a list, an empty object."""
    return {"mark": mark, "text": "naïve ☃", "number": 2**53 + 1, "list": [None, True, 0.5], "empty": {}}


class ControlPlaneProbe:
    """The caller's own tenant, which is there or nobody could ask. Writing is for t_system's admins."""

    leaves = False
    reads_only = True

    async def write(self, client: AsyncEngines, mark: str) -> None:
        """Nothing is written."""

    async def read(self, client: AsyncEngines, mark: str) -> None:  # noqa: ARG002  (there is none to find)
        await client.tenants.get((await client.me()).tenant_id)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """Nothing was written."""


class RegistryProbe:
    """The route by which every change of the tenant is told of."""

    leaves = False
    reads_only = True

    async def write(self, client: AsyncEngines, mark: str) -> None:
        """Nothing is written."""

    async def read(self, client: AsyncEngines, mark: str) -> None:  # noqa: ARG002  (there is none to find)
        await client.routes.resolve(catalogue.EVENT_SPINE)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """Nothing was written."""


class SpineProbe:
    """The event spine."""

    leaves = True
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        await client.events.append([NewEvent(event_type=EVENT_TYPE, payload=value_of(mark), event_id=mark)])

    async def read(self, client: AsyncEngines, mark: str) -> None:
        _compare((await client.events.get(mark)).payload, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """The spine is append-only."""


class StreamProbe:
    """A stream of the doctor's own."""

    leaves = True
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        event = NewEvent(event_type=EVENT_TYPE, payload=value_of(mark), event_id=mark)
        await client.streams.append(NAME, [event])

    async def read(self, client: AsyncEngines, mark: str) -> None:
        page = await client.streams.page(NAME, order="desc")
        found = next((event.payload for event in page.items if event.event_id == mark), None)
        _compare(found, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """A stream is append-only."""


class TableProbe:
    """A row."""

    leaves = False
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        await client.tables.put(NAME, NAME, mark, value_of(mark), if_absent=True)

    async def read(self, client: AsyncEngines, mark: str) -> None:
        _compare((await client.tables.get(NAME, NAME, mark)).value, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        await client.tables.delete(NAME, NAME, mark)


class MemoryProbe:
    """An entry of a session."""

    leaves = False
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        await client.memory.put(mark, NAME, value_of(mark), ttl_seconds=MEMORY_TTL_S, if_absent=True)

    async def read(self, client: AsyncEngines, mark: str) -> None:
        _compare((await client.memory.get(mark, NAME)).value, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        await client.memory.delete(mark, NAME)


class BlackboardProbe:
    """An entry of a run."""

    leaves = True
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        await client.blackboard.put(NAME, mark, value_of(mark), if_absent=True)

    async def read(self, client: AsyncEngines, mark: str) -> None:
        _compare((await client.blackboard.get(NAME, mark)).value, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """A blackboard keeps what was written."""


class NotesProbe:
    """A note, found again by its tag."""

    leaves = False
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        content = value_of(mark)
        await client.notes.create(NewNote(title=NAME, content=content, content_type="json", tags=(mark,)))

    async def read(self, client: AsyncEngines, mark: str) -> None:
        found = [note.content async for note in client.notes.each(tag=mark)]
        if len(found) > 1:
            raise Corrupt("one note was written, and several are there")
        _compare(found[0] if found else None, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        async for note in client.notes.each(tag=mark):
            await client.notes.delete(note.note_id)


class ReadingProbe:
    """Reads what is there, if anything. None is written: of these kinds each write stays for good."""

    leaves = False
    reads_only = True

    def __init__(self, read: Callable[[AsyncEngines], Awaitable[object]]) -> None:
        self._read = read

    async def write(self, client: AsyncEngines, mark: str) -> None:
        """Nothing is written."""

    async def read(self, client: AsyncEngines, mark: str) -> None:  # noqa: ARG002  (there is none to find)
        with contextlib.suppress(NotFound):
            await self._read(client)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        """Nothing was written."""


PROBES: Final[Mapping[str, Probe]] = {
    catalogue.CONTROL_PLANE: ControlPlaneProbe(),
    catalogue.ROUTING_REGISTRY: RegistryProbe(),
    catalogue.EVENT_SPINE: SpineProbe(),
    catalogue.EVENT_STREAM: StreamProbe(),
    catalogue.TABLES: TableProbe(),
    catalogue.SESSION_MEMORY: MemoryProbe(),
    catalogue.BLACKBOARD: BlackboardProbe(),
    catalogue.NOTES: NotesProbe(),
    catalogue.FLOWS: ReadingProbe(lambda client: client.flows.page(limit=1)),
    catalogue.GRAPHS: ReadingProbe(lambda client: client.graphs.page(limit=1)),
    catalogue.OVERLAYS: ReadingProbe(lambda client: client.overlays.page(limit=1)),
    catalogue.SEO: ReadingProbe(lambda client: client.seo.page(limit=1)),
    catalogue.PAGES: ReadingProbe(lambda client: client.pages.page(limit=1)),
    catalogue.ATTRIBUTION: ReadingProbe(lambda client: client.attribution.page(limit=1)),
    catalogue.STRATEGY_LOCKS: ReadingProbe(lambda client: client.strategy_locks.page(limit=1)),
    catalogue.FLAGS: ReadingProbe(lambda client: client.flags.page(limit=1)),
    catalogue.KPIS: ReadingProbe(lambda client: client.kpis.page(limit=1)),
    catalogue.TEMPERATURES: ReadingProbe(lambda client: client.temperature.page(limit=1)),
    catalogue.FIREARMS: ReadingProbe(lambda client: client.firearms.page(limit=1)),
    catalogue.RATE_LIMITS: ReadingProbe(lambda client: client.rate_limits.get()),
    catalogue.REALTIME: ReadingProbe(lambda client: client.realtime.page("thread", NAME, limit=1)),
    catalogue.BUDGET: ReadingProbe(lambda client: client.budget.summary(by="day")),
    catalogue.ANALYTICS: ReadingProbe(lambda client: client.analytics.page(limit=1)),
}
