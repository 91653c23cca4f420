"""A home in which definitions can be told to a spine: everything that `Definitions` stands on, for real.

Owns putting the parts together on one `Home`, and waiting for what was told.
"""

from __future__ import annotations

import asyncio
from typing import Any

from engines.core.pledges import Pledges
from engines.scope import RequestContext
from engines.stores.announcements import Announcements
from engines.stores.definition_records import DefinitionInput
from engines.stores.definitions import Definitions
from engines.stores.events import Event, EventFilter, EventSpine
from tests.stores.home import Home, context
from tests.stores.ticking import ticking

PLEDGES = "pledges"


class Told:
    """One process on a home: its spine, its announcements and its definitions."""

    def __init__(self, home: Home, name: str = "one", *, segment_size: int = 50_000) -> None:
        self.home = home
        self.spine = EventSpine(home, home.ids, home.clock, segment_size_default=segment_size)
        self.announcements = Announcements(home, self.spine, home.ids, home.clock)
        self.pledges = self.announcements.promises = Pledges(
            home.documents,
            PLEDGES,
            process_id=name,
            clock=home.clock,
            finish=self.announcements.finish,
        )
        self.definitions = Definitions(home, self.announcements, home.ids, home.clock)

    async def close(self) -> None:
        # Who leaves the log's next slot to others waits by the clock, and what is told waits for that.
        time = asyncio.create_task(ticking(self.home.clock))
        await self.announcements.close()
        await self.spine.close()
        time.cancel()

    async def events(self, mine: RequestContext | None = None, *, event_type: str = "audit") -> list[Event]:
        """What the spine was told so far."""
        listed = await self.spine.list(mine or context(), EventFilter(event_type=event_type))
        return list(listed.items)

    async def told(self, count: int, *, event_type: str = "audit") -> list[dict[str, Any]]:
        """The payloads of the first `count` events, once there are so many; the test's time limit ends it."""
        while True:
            found = await self.events(event_type=event_type)
            if len(found) >= count:
                return [event.payload or {} for event in found]
            await asyncio.sleep(0.01)


def page(slug: str, **members: Any) -> DefinitionInput:
    """What a definition of kind `pages` may say."""
    return DefinitionInput(json_blob={"slug": slug, **members})
