"""Kept records: numbered within their session, never changed, of which the newest stay, as the route says.

Owns adding, reading and listing them, the same for checkpoints and traces. Leaves what a record says and who
may do what to its store, numbers and races to `agent/sequences.py`, and whether there is such a session to
`agent/sessions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from engines import catalogue
from engines.agent import sequences
from engines.agent.sequences import Head, Rules, address, parts_of
from engines.agent.sessions import Sessions
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.listing import Listed, Window, list_records
from engines.core.place import Places
from engines.errors import NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, Stamped

Record = TypeVar("Record", bound=Stamped)


class Kept(Generic[Record]):
    """The records of one kind. `noun`: what one is called; `shown`: one as a document has it.

    The kind's first option says how many of a session are kept. Methods raise what those of the stores
    say; they ask for no permission.
    """

    def __init__(
        self, kind: str, noun: str, places: Places, sessions: Sessions, shown: Callable[[Doc], Record]
    ) -> None:
        self._kind = kind
        self._noun = noun
        self._places = places
        self._sessions = sessions
        self._shown = shown
        self._option = catalogue.kind_named(kind).options[0]

    async def append(
        self,
        context: RequestContext,
        session_id: str,
        text: Callable[[int], str],
        request: Request | None,
    ) -> Change[Record]:
        """`text`, of the number that it gets, behind the others. Whoever calls looked for the session."""
        at = address(context, session_id)
        async with self._places.changing(self._kind, context) as place:
            kept = place.options.get(self._option.name, self._option.default)
            written = await sequences.append(
                place.documents,
                await place.partition(at.user_id),
                at,
                text,
                rules=Rules(f"{self._noun}s", kept=kept, begins=True),
                request=request,
            )
        return Change(self._shown(written.doc), written.created, written.replayed)

    async def head(self, context: RequestContext, session_id: str) -> Head:
        """How many there were of a session. One read."""
        at = address(context, session_id)
        place = await self._places.place(self._kind, context)
        _, head = await sequences.head_of(place.documents, await place.partition(at.user_id), at)
        return head

    async def get(self, context: RequestContext, record_id: str) -> Record:
        """Two reads. Raises NotFound, also for one that is no longer kept."""
        parts = parts_of(check_id(record_id, f"{self._noun}_id"))
        if parts is None:
            raise self._missing()
        session_id, number = parts
        at = address(context, session_id)
        place = await self._places.place(self._kind, context)
        doc = await place.documents.get(await place.partition(at.user_id), at.item(number))
        if doc is None:
            raise self._missing()
        await self._sessions.active(context, session_id)
        return self._shown(doc)

    async def list(
        self,
        context: RequestContext,
        session_id: str,
        *,
        window: Window,
        shown: Callable[[Doc], Record] | None = None,
    ) -> Listed[Record]:
        """A session's, the oldest first. Two reads. `shown`: as lists show them, if not as `get` does."""
        await self._sessions.active(context, session_id)
        at = address(context, session_id)
        place = await self._places.place(self._kind, context)
        return await list_records(
            place.documents,
            await place.partition(at.user_id),
            at.prefix,
            shown or self._shown,
            cursors=list_scope(self._kind, context.tenant_id, context.env, context.user_id, session_id),
            window=window,
        )

    def _missing(self) -> NotFound:
        return NotFound(f"there is no such {self._noun}, or it is no longer kept")
