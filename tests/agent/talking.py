"""What tests of the agent's stores say and look at: people, a session with messages, what is stored of it.

Owns `stops`, which ends a call before each of its writes in turn: the process could have been killed there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

from engines import catalogue
from engines.agent.messages import MessageInput
from engines.agent.sessions import Session, SessionInput
from engines.agent.stores import AgentStores
from engines.core.listing import START, Window
from engines.core.transfer import EVERYTHING_ABOVE, EVERYTHING_BELOW
from engines.errors import BackendRefused
from engines.scope import RequestContext
from engines.testing.faults import Fault
from tests.contexts import PERMISSIONS_OF
from tests.stores.home import Home, context

AGENT_KINDS = (catalogue.SESSIONS, catalogue.CHECKPOINTS, catalogue.TRACES)


def person(user_id: str, role: str = "member", **changes: Any) -> RequestContext:
    return context(user_id=user_id, roles=(role,), permissions=PERMISSIONS_OF[role], **changes)


ADA, BOB = person("ada"), person("bob")


def said(text: str, role: Any = "user", **members: Any) -> MessageInput:
    return MessageInput(role=role, content=text, **members)


async def begun(agent: AgentStores, *texts: str, who: RequestContext = ADA, title: str = "") -> Session:
    """A new session in which this was said."""
    session = (await agent.sessions.create(who, SessionInput(title=title))).record
    for text in texts:
        await agent.messages.append(who, session.session_id, said(text))
    return session


async def heard(agent: AgentStores, session_id: str, who: RequestContext = ADA) -> list[str]:
    """What was said in a session."""
    texts, window = [], START
    while True:
        page = await agent.messages.list(who, session_id, window=window)
        texts += [message.content for message in page.items]
        if page.after is None:
            return texts
        window = Window(after=page.after)


async def at_once(*calls: Awaitable[Any]) -> list[type[BaseException] | None]:
    """What each was refused with, None for those that were not."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else None for one in outcomes]


async def stored_keys(home: Home, *letters: str, who: RequestContext = ADA) -> list[str]:
    """The keys of all that a session's kinds hold of a user, markers and the layout's left out."""
    keys = []
    for kind in AGENT_KINDS:
        place = await home.place(kind, who)
        for partition in await place.partitions():
            page = await home.documents.scan(partition, above=EVERYTHING_ABOVE, below=EVERYTHING_BELOW)
            keys += [f"{kind} {doc.key}" for doc in page.docs if doc.key[0] in (letters or "shi")]
    return keys


async def stops(home: Home, call: Callable[[], Awaitable[object]]) -> AsyncIterator[int]:
    """For each write of `call`: a turn in which the call ended before that write; then none.

    Each turn has to bring about what `call` needs by itself.
    """
    for writes in count():
        home.faults.script(*[Fault.NONE] * writes, Fault.FORBIDDEN)
        try:
            await call()
        except BackendRefused:
            yield writes
        else:
            home.faults.forget_script()
            return
