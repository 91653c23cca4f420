"""What `engines doctor` writes on each kind, reads back and removes.

Owns one probe a kind, through the same API as everybody's data. Leaves order, restarts and reporting to
`cli/doctor.py`. Logs are append-only and a blackboard keeps what was written, so those probes leave one small
record behind, named after the doctor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from engines import catalogue
from engines.client import AsyncEngines, NewEvent, NewNote, NewTrace, Session
from engines.errors import Corrupt, NotFound

NAME: Final = "engines-doctor"
EVENT_TYPE: Final = "doctor"
# A probe of session memory that is never removed removes itself.
MEMORY_TTL_S: Final = 3_600
# The probe's session is among these unless its user begins as many others within seconds.
NEWEST: Final = 100


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


class SessionProbe:
    """A session of the probe's own and one part of it, both of which its deletion takes away.

    It is found again by its metadata, among the caller's newest.
    """

    leaves = False
    reads_only = False

    def __init__(
        self,
        part: str,
        add: Callable[[AsyncEngines, Session, Any], Awaitable[object]],
        find: Callable[[AsyncEngines, Session], Awaitable[Sequence[Any]]],
    ) -> None:
        self._part = part
        self._add = add
        self._find = find

    async def write(self, client: AsyncEngines, mark: str) -> None:
        session = await client.sessions.create(title=NAME, metadata=self._metadata(mark))
        await self._add(client, session, value_of(mark))

    async def read(self, client: AsyncEngines, mark: str) -> None:
        sessions = await self._sessions(client, mark)
        found = [part for session in sessions for part in await self._find(client, session)]
        _compare(found[0] if found else None, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        for session in await self._sessions(client, mark):
            await client.sessions.delete(session.session_id)

    async def _sessions(self, client: AsyncEngines, mark: str) -> list[Session]:
        page = await client.sessions.page(order="desc", limit=NEWEST)
        return [session for session in page.items if session.metadata == self._metadata(mark)]

    def _metadata(self, mark: str) -> dict[str, str]:
        return {"mark": mark, "part": self._part}


async def _say(client: AsyncEngines, session: Session, value: Any) -> None:
    await client.messages.append(session.session_id, "user", value)


async def _said(client: AsyncEngines, session: Session) -> Sequence[Any]:
    return [message.content for message in (await client.messages.page(session.session_id, limit=1)).items]


async def _save(client: AsyncEngines, session: Session, value: Any) -> None:
    await client.checkpoints.save(session.session_id, value)


async def _saved(client: AsyncEngines, session: Session) -> Sequence[Any]:
    page = await client.checkpoints.page(session.session_id, limit=1)
    return [checkpoint.state for checkpoint in page.items]


async def _trace(client: AsyncEngines, session: Session, value: Any) -> None:
    at = session.created_at
    trace = NewTrace(name=NAME, started_at=at, ended_at=at, attributes=value)
    await client.traces.record(session.session_id, trace)


async def _traced(client: AsyncEngines, session: Session) -> Sequence[Any]:
    return [trace.attributes for trace in (await client.traces.page(session.session_id, limit=1)).items]


class AgentMemoryProbe:
    """An entry of agent memory."""

    leaves = False
    reads_only = False

    async def write(self, client: AsyncEngines, mark: str) -> None:
        await client.agent_memory.put("summaries", f"{NAME}-{mark}", value_of(mark), if_absent=True)

    async def read(self, client: AsyncEngines, mark: str) -> None:
        _compare((await client.agent_memory.get("summaries", f"{NAME}-{mark}")).value, mark)

    async def delete(self, client: AsyncEngines, mark: str) -> None:
        await client.agent_memory.delete("summaries", f"{NAME}-{mark}")


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
    catalogue.SESSIONS: SessionProbe("message", _say, _said),
    catalogue.CHECKPOINTS: SessionProbe("checkpoint", _save, _saved),
    catalogue.TRACES: SessionProbe("trace", _trace, _traced),
    catalogue.AGENT_MEMORY: AgentMemoryProbe(),
    catalogue.TELEMETRY: ReadingProbe(lambda client: client.telemetry.report()),
    catalogue.BUDGET: ReadingProbe(lambda client: client.budget.summary(by="day")),
    catalogue.ANALYTICS: ReadingProbe(lambda client: client.analytics.page(limit=1)),
}
