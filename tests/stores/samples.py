"""What store tests write: notes and events with nothing in them that a test did not ask for."""

from __future__ import annotations

from typing import Any

from engines.stores.events import Event, EventSpine, NewEvent
from engines.stores.notes import NoteInput
from tests.stores.home import context

OWN_ID = "0b3a9d0e-7a5f-4b6e-9d1c-2f3a4b5c6d7e"
# How many events the spine of the fixture `filled` holds.
COUNT = 23


def note(content: Any = "milk", **fields: Any) -> NoteInput:
    return NoteInput(content=content, **fields)


def event(event_type: str = "message", **fields: Any) -> NewEvent:
    return NewEvent(**{"event_type": event_type, "payload": {"a": 1}} | fields)


def numbered(number: int, **fields: Any) -> NewEvent:
    """An event that can be told from others by its payload."""
    return event(**{"payload": {"n": number}} | fields)


def numbers(events: tuple[Event, ...] | list[Event]) -> list[int]:
    """What `numbered` was given."""
    return [shown.payload["n"] for shown in events if shown.payload is not None]


async def everything(spine: EventSpine, **changes: Any) -> tuple[Event, ...]:
    """The first page of the spine, as the context with `changes` sees it."""
    return (await spine.list(context(**changes))).items
