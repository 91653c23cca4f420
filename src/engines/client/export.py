"""Taking the events of a tenant's spine away: every event that filters let through, into parts on disk.

Owns up to where an export goes, in what order, and how it goes on. Leaves files to `client/export_files.py`
and their contents to `client/export_formats.py`.

A run begins with the proof that nobody rewrote the spine: `GET /events/verify` reads it whole, and holds it
against the head of the run before. The head that it finds is written down before the first event is fetched,
and is where the export ends: what is appended meanwhile is the next run's. Whoever is killed goes on, when it
is started again, behind the last part that the manifest names, up to that same head; an export that is
complete goes on from its head to the present one. Cursors are positions, so a restart of the server or a move
of the tenant in between changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final

import msgspec

from engines.client.control_results import Me
from engines.client.engines import AsyncEngines
from engines.client.export_files import (
    PART_EVENTS_DEFAULT,
    PART_EVENTS_MAX,
    PARTS_MAX,
    ExportDirectory,
    ExportHead,
    Filters,
    Format,
    Manifest,
    Part,
)
from engines.client.export_formats import ENCODERS, require
from engines.client.results import Event, Head
from engines.errors import Corrupt, Invalid, TooLarge

PAGE_EVENTS: Final = 1_000
# A part ends at so many bytes of JSON too, so that one killed late has not much to fetch again.
PART_BYTES_MAX: Final = 256 * 1024 * 1024
FORMAT_DEFAULT: Final[Format] = "jsonl"

OnPart = Callable[[Part, Manifest], None]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to export. What is None is the manifest's where there is one, and else the default."""

    filters: Filters = Filters()
    format: Format | None = None
    part_events: int | None = None


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did, and what the export now holds."""

    manifest: Manifest
    new_parts: int
    new_events: int


async def export(
    client: AsyncEngines, path: Path, wanted: Wanted, *, on_part: OnPart | None = None
) -> Exported:
    """Export to the directory `path`, or go on with what stands there. Safe to repeat after any interruption.

    Raises Invalid (a directory that holds something else or is full, other filters, a bad filter), Conflict
    (another export writes there), Corrupt (the spine is not what it was), Forbidden, TooLarge (too many
    parts), and what pages of events raise.
    """
    directory = ExportDirectory(path)
    try:
        with directory.held():
            before = manifest = await _begun(client, directory, wanted)
            if not manifest.is_complete:
                manifest = await _Run(client, directory, manifest, on_part).finished()
    except OSError as error:
        raise Invalid(f"{path} cannot be written to: {error.strerror}", field="directory") from error
    return Exported(
        manifest=manifest,
        new_parts=len(manifest.parts) - len(before.parts),
        new_events=manifest.event_count - before.event_count,
    )


async def _begun(client: AsyncEngines, directory: ExportDirectory, wanted: Wanted) -> Manifest:
    """The manifest with the head up to which to go, on disk; complete where nothing is new."""
    found = directory.read()
    me = await client.me()
    if found is None:
        manifest = await _fresh(client, me, wanted)
    else:
        _check_same(found, me, wanted)
        require(found.format)
        head = await _head(client, found.head)
        if not found.is_complete or head.position == found.head.position:
            return found
        manifest = msgspec.structs.replace(found, head=head, earlier_head=found.head, is_complete=False)
    directory.save(manifest)
    return manifest


async def _fresh(client: AsyncEngines, me: Me, wanted: Wanted) -> Manifest:
    format_ = wanted.format or FORMAT_DEFAULT
    part_events = PART_EVENTS_DEFAULT if wanted.part_events is None else wanted.part_events
    if not 1 <= part_events <= PART_EVENTS_MAX:
        raise Invalid(f"a part holds 1 to {PART_EVENTS_MAX} events", field="part_events")
    require(format_)
    # Whether it may be, and the filters are any, is known before the spine is read and a manifest binds.
    await client.events.export_page(limit=1, **msgspec.structs.asdict(wanted.filters))
    return Manifest(
        tenant_id=me.tenant_id,
        env=me.env,
        format=format_,
        part_events=part_events,
        filters=wanted.filters,
        head=await _head(client, None),
    )


def _check_same(found: Manifest, me: Me, wanted: Wanted) -> None:
    """Raises Invalid where the directory holds an export of something else."""
    told = {
        "tenant_id": (me.tenant_id, found.tenant_id),
        "env": (me.env, found.env),
        "format": (wanted.format, found.format),
        "part_events": (wanted.part_events, found.part_events),
        **{
            name: (getattr(wanted.filters, name), getattr(found.filters, name))
            for name in Filters.__struct_fields__
        },
    }
    for name, (asked, stands) in told.items():
        if asked is not None and asked != stands:
            raise Invalid(
                f"this directory's export has {stands!r} here; choose another directory", field=name
            )


async def _head(client: AsyncEngines, earlier: ExportHead | None) -> ExportHead:
    """The spine's head, verified; `earlier` is one that it must still hold. Raises Corrupt."""
    expected = None if earlier is None or earlier.position == 0 else Head(earlier.position, earlier.digest)
    found = await client.events.verify(expected=expected)
    if not found.ok:
        raise Corrupt(f"the spine does not verify at position {found.bad_position}: {found.reason}")
    return ExportHead(found.head.position, found.head.digest, await _cursor_at(client, found.head.position))


async def _cursor_at(client: AsyncEngines, position: int) -> str | None:
    """The cursor of an event that was the last one a moment ago."""
    after = None
    while position > 0:
        page = await client.events.export_page(order="desc", after=after, limit=PAGE_EVENTS)
        for event in page.items:
            if event.position == position:
                return event.cursor
        if page.after is None:
            raise Corrupt(f"the spine verified up to position {position}, and no event stands there")
        after = page.after
    return None


class _Run:
    """One way from where an export stands to its head."""

    def __init__(
        self, client: AsyncEngines, directory: ExportDirectory, manifest: Manifest, on_part: OnPart | None
    ) -> None:
        self._client = client
        self._directory = directory
        self._manifest = manifest
        self._on_part = on_part

    async def finished(self) -> Manifest:
        """Write what is missing, part by part, and say that it is all there."""
        async with contextlib.aclosing(self._events()) as events:
            while (first := await anext(events, None)) is not None:
                self._take(await self._written(first, events))
        self._manifest = msgspec.structs.replace(self._manifest, is_complete=True)
        self._directory.save(self._manifest)
        return self._manifest

    async def _written(self, first: Event, events: AsyncGenerator[Event, None]) -> Part:
        """The next part: `first`, and of `events` as many as it has room for."""
        manifest = self._manifest
        if len(manifest.parts) >= PARTS_MAX:
            raise TooLarge(f"an export has at most {PARTS_MAX} parts; begin another one", field="directory")
        name = self._directory.part_name(len(manifest.parts) + 1, manifest.format)
        last, count = first, 1
        with self._directory.writing(name) as file:
            encoder = ENCODERS[manifest.format](file)
            size = encoder.add(first)
            while count < manifest.part_events and size < PART_BYTES_MAX:
                event = await anext(events, None)
                if event is None:
                    break
                size += encoder.add(event)
                last, count = event, count + 1
            encoder.finish()
        byte_count, digest = self._directory.digest(name)
        return Part(
            file=name,
            first_position=first.position,
            last_position=last.position,
            event_count=count,
            byte_count=byte_count,
            sha256=digest,
            cursor=last.cursor,
        )

    def _take(self, part: Part) -> None:
        self._manifest = msgspec.structs.replace(
            self._manifest,
            parts=(*self._manifest.parts, part),
            event_count=self._manifest.event_count + part.event_count,
        )
        self._directory.save(self._manifest)
        if self._on_part is not None:
            self._on_part(part, self._manifest)

    async def _events(self) -> AsyncGenerator[Event, None]:
        """What is missing, up to the head. Raises Corrupt where the pages leave something out."""
        head = self._manifest.head.position
        filters = msgspec.structs.asdict(self._manifest.filters)
        position, after = self._manifest.reached
        while position < head:
            page = await self._client.events.export_page(after=after, limit=PAGE_EVENTS, **filters)
            for event in page.items:
                if event.position > head:
                    return
                self._check(event.position, position)
                position = event.position
                yield event
            if page.after is None:
                return
            after = page.after

    def _check(self, position: int, before: int) -> None:
        gapless = self._manifest.filters == Filters() and before > 0
        if position <= before or (gapless and position != before + 1):
            raise Corrupt(f"the server's pages lead from position {before} to {position}")
