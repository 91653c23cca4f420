"""A process of a deployment that writes notes for ever.

Run as `python -m tests.moves.process URL USER [BACKEND [AHEAD_S]]`.
It prints a line of JSON before each change and one after it was acknowledged, and takes part in moves as
every process does; with a BACKEND it begins to move the notes there once some are written. AHEAD_S is what
its wall clock is wrong by. Its parent kills it, stops it, or ends it by closing its standard input.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

import msgspec

import engines
from engines.clock import SystemClock
from engines.core.idempotency import identify
from engines.errors import OutcomeUnknown
from engines.stores.notes import NoteInput
from tests.moves.conftest import OWNER


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class ClockAhead(SystemClock):
    """A machine's clock that somebody set wrong."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def now(self) -> float:
        return super().now() + self._ahead_s


NOTES_BEFORE_MOVE = 20
NOTES_MAX = 500


async def write_notes(url: str, user_id: str, backend_id: str | None = None, ahead_s: str = "0") -> None:
    context = msgspec.structs.replace(OWNER, user_id=user_id)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with engines.open(url, clock=ClockAhead(float(ahead_s))) as opened:
        say(ready=True)
        ids: list[str] = []
        number = 0
        while not ended.done():
            content = f"{user_id}.{number}"
            known = random.choice(ids) if ids and (number % 3 or len(ids) == NOTES_MAX) else None
            say(trying=content, note_id=known)
            began_s = opened.clock.monotonic()
            try:
                if known is None:
                    request = identify(user_id, str(number), body=b"")
                    made = await opened.notes.create(context, NoteInput(content=content), request=request)
                    ids.append(made.record.note_id)
                    known = made.record.note_id
                else:
                    await opened.notes.replace(context, known, NoteInput(content=content))
            except OutcomeUnknown:
                say(unknown=content, took_s=opened.clock.monotonic() - began_s)
                return
            say(done=content, note_id=known, took_s=opened.clock.monotonic() - began_s)
            number += 1
            if number == NOTES_BEFORE_MOVE and backend_id is not None:
                stored = await opened.moves.start(OWNER, "notes_store", backend_id)
                say(moving=stored.record.move_id)


if __name__ == "__main__":
    asyncio.run(write_notes(*sys.argv[1:]))
