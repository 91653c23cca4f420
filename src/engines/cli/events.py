"""`engines events`: follow the spine, prove that nobody rewrote it, look after its index.

Leaves the command that exports it to `cli/exports.py`, which is imported when it is run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter
from rich.text import Text

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_record
from engines.client import AsyncEngines, Event, Head
from engines.codec import encode_json
from engines.errors import Invalid

PAYLOAD_CHARS_MAX: Final = 120

app = App(
    name="events", help="Follow the spine, prove that nobody rewrote it, export it, look after its index."
)
app.command(
    "engines.cli.exports:export_events",
    name="export",
    help="Export the spine into files: resumable, followed up later, and verifiable.",
)


@app.command
async def tail(
    *,
    since: str | None = None,
    after: str | None = None,
    type_: Annotated[tuple[str, ...] | None, Parameter(name="--type")] = None,
    count: int | None = None,
    follow: Annotated[bool, Parameter(negative="--no-follow")] = True,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Print events as they come, across restarts of the server, until Ctrl-C.

    Parameters
    ----------
    since
        An RFC 3339 instant: begin with what happened then. Default: with the next event.
    after
        A cursor from an earlier event: begin behind it.
    type_
        Only events of this type; repeat it for more.
    count
        Stop after so many.
    follow
        With --no-follow: print what there is and stop.
    """
    if since is not None and after is not None:
        raise Invalid("--since and --after both say where to begin", field="since")
    if count is not None and count < 1:
        raise Invalid("at least one", field="count")
    async with connection.client() as client:
        with contextlib.suppress(asyncio.CancelledError):
            events = _events(client, since, after, frozenset(type_ or ()), follow=follow)
            await _print_events(events, count, as_json=as_json)


async def _print_events(events: AsyncIterator[Event], count: int | None, *, as_json: bool) -> None:
    printed = 0
    async for event in events:
        if as_json:
            print_json(event)
        else:
            console().print(_line(event))
        printed += 1
        if printed == count:
            return


async def _events(
    client: AsyncEngines, since: str | None, after: str | None, types: frozenset[str], *, follow: bool
) -> AsyncIterator[Event]:
    """What there is, then what comes: following goes on behind the last event that was read."""
    if since is None and after is None and follow:
        last = await client.events.last()
        after = None if last is None else last.cursor
    elif since is not None:
        # The event before the first of that time, so that following can go on even if nothing came since.
        before = await client.events.page(limit=1, order="desc", until=since)
        after = before.items[0].cursor if before.items else None
    events = client.events.follow(after=after) if follow else client.events.each(after=after)
    async for event in events:
        if not types or event.event_type in types:
            yield event


def _line(event: Event) -> Text:
    payload = encode_json(event.payload)
    if len(payload) > PAYLOAD_CHARS_MAX:
        payload = payload[: PAYLOAD_CHARS_MAX - 1] + "…"
    return Text.assemble(
        (f"{event.position:>8} ", "dim"),
        f"{event.timestamp} ",
        (f"{event.event_type} ", "bold"),
        f"{event.source} ",
        (f"{event.user_id or '-'} ", "cyan"),
        (payload, "dim"),
    )


@app.command
async def verify(
    *, expect: str | None = None, connection: Connection = DEFAULT, as_json: AsJson = False
) -> int:
    """Read the whole spine and its digests, and print its head. Keep the head elsewhere.

    Parameters
    ----------
    expect
        An earlier head as POSITION:DIGEST, which the spine must still hold.
    """
    expected = None if expect is None else _head(expect)
    async with connection.client() as client:
        found = await client.events.verify(expected=expected)
    if as_json:
        print_json(found)
    else:
        told = msgspec.to_builtins(found)
        print_record({**told, "head": f"{found.head.position}:{found.head.digest}"}, as_json=False)
    return OK if found.ok else FAILED


def _head(text: str) -> Head:
    position, _, digest = text.partition(":")
    if not position.isdecimal() or not digest:
        raise Invalid("a head is POSITION:DIGEST, as engines events verify prints it", field="expect")
    return Head(int(position), digest)


@app.command
async def project(
    *,
    rebuild: Annotated[bool, Parameter(negative=())] = False,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Print how far the spine's index by run, user and type has come, and how many events it lags behind.

    Parameters
    ----------
    rebuild
        Make the index anew. The server does it beside requests; lists stay complete and are slower meanwhile.
    """
    async with connection.client() as client:
        status = await (client.events.rebuild_index() if rebuild else client.events.index())
    print_record(status, as_json=as_json)
