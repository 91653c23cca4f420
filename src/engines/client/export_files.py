"""An export on disk: a directory of parts, and a manifest that says what they are.

Owns the names, the manifest's form, how a part and a manifest reach the disk, and the check of a finished
export against its digests, which needs no server. Leaves what stands in a part to `client/export_formats.py`
and where events come from to `client/export.py`.

A file is written under a temporary name, brought to disk and renamed, and so is the manifest that then names
it: whatever is killed at whatever moment, each part that the manifest names is whole, and what it does not
name is written again. Nothing in a part or in the manifest depends on the clock or on who was killed, so the
same events, filters and size of parts give the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from engines.errors import Conflict, Invalid

MANIFEST: Final = "manifest.json"
# What a manifest names is read and written whole with every part.
PARTS_MAX: Final = 100_000
PART_EVENTS_DEFAULT: Final = 50_000
PART_EVENTS_MAX: Final = 1_000_000
_WRITING: Final = ".writing"
_UNFINISHED: Final = re.compile(r"\.(manifest\.json|part-\d{6}\.[a-z]+)\.writing")
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700

Format = Literal["jsonl", "parquet"]


class Filters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events an export holds; None leaves a field open. `since` <= timestamp < `until`, RFC 3339."""

    event_type: str | None = None
    run_id: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    since: str | None = None
    until: str | None = None


class ExportHead(msgspec.Struct, frozen=True, omit_defaults=True):
    """The spine's head when it was verified. `cursor` goes on behind it; None for an empty spine."""

    position: int
    digest: str
    cursor: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One file of events in the order of their positions. `cursor` goes on behind its last event."""

    file: str
    first_position: int
    last_position: int
    event_count: int
    byte_count: int
    sha256: str
    cursor: str


class Manifest(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="schema",
    tag="export/1",
):
    """What an export holds: of one tenant and env, every event that the filters let through, up to `head`.

    `is_complete`: it does; else it is under way to there from `earlier_head`, the one of the run before.
    """

    tenant_id: str
    env: str
    format: Format
    part_events: int
    filters: Filters
    head: ExportHead
    earlier_head: ExportHead | None = None
    is_complete: bool = False
    event_count: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def reached(self) -> tuple[int, str | None]:
        """Up to which position nothing is missing any more, and the cursor that goes on behind it."""
        places: list[tuple[int, str | None]] = [(0, None)]
        if self.earlier_head is not None:
            places.append((self.earlier_head.position, self.earlier_head.cursor))
        if self.parts:
            places.append((self.parts[-1].last_position, self.parts[-1].cursor))
        return max(places, key=lambda place: place[0])


class ExportDirectory:
    """The files of one export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory where it is missing, and keep other exports out of it; a killed one lets go.

        Raises Conflict where another writes, Invalid for a directory that holds something else, OSError.
        """
        self.path.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict("another export is writing to this directory", field="directory") from error
            self._clear()
            yield
        finally:
            os.close(descriptor)

    def read(self) -> Manifest | None:
        """The manifest; None where there is none. Raises Invalid for a file that is none."""
        try:
            return msgspec.json.decode(self._manifest.read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(
                f"{self._manifest} is no manifest of an export: {error}", field="directory"
            ) from error

    def save(self, manifest: Manifest) -> None:
        """Bring the manifest to disk, in place of the one before."""
        with self.writing(MANIFEST) as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")

    def part_name(self, number: int, format_: Format) -> str:
        """The name of part `number`, from 1."""
        return f"part-{number:06d}.{format_}"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file that has its name, whole and on disk, once the block ends; and nothing where it fails."""
        temporary = self.path / f".{name}{_WRITING}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
        temporary.replace(self.path / name)
        self._sync_names()

    def digest(self, name: str) -> tuple[int, str]:
        """Size and SHA-256 of a file as it stands on disk."""
        with (self.path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest

    def problems(self, manifest: Manifest) -> list[str]:
        """What is not as the manifest says, in sentences; nothing where the export is whole."""
        found: list[str] = []
        if not manifest.is_complete:
            found.append("the export is not finished: start it again, and it goes on")
        for part in manifest.parts:
            found.extend(self._problems_of(part))
        known = {part.file for part in manifest.parts}
        extra = {path.name for path in self.path.glob("part-*")} - known
        found.extend(f"{name} is no part of the export" for name in sorted(extra))
        found.extend(_count_problems(manifest))
        return found

    def _problems_of(self, part: Part) -> Iterator[str]:
        if Path(part.file).name != part.file:
            yield f"{part.file} is no name of a part"
            return
        try:
            byte_count, digest = self.digest(part.file)
        except OSError as error:
            yield f"{part.file} cannot be read: {error.strerror}"
            return
        if (byte_count, digest) != (part.byte_count, part.sha256):
            yield f"{part.file} is not what was written: {byte_count} bytes, SHA-256 {digest}"

    def _clear(self) -> None:
        """Remove what a killed export was writing, and nothing else. Raises Invalid where it is not ours."""
        found = list(self.path.iterdir())
        unfinished = [path for path in found if _UNFINISHED.fullmatch(path.name)]
        if not self._manifest.exists() and len(unfinished) < len(found):
            raise Invalid("the directory holds something, and no export", field="directory")
        for path in unfinished:
            path.unlink()

    def _sync_names(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def _manifest(self) -> Path:
        return self.path / MANIFEST


def _count_problems(manifest: Manifest) -> Iterator[str]:
    """Whether the manifest agrees with itself; without filters no position may be missing."""
    if manifest.event_count != sum(part.event_count for part in manifest.parts):
        yield "the manifest's event_count is not the sum of its parts"
    is_whole = manifest.filters == Filters()
    last = 0
    for part in manifest.parts:
        span = part.last_position - part.first_position + 1
        adjoins = not is_whole or last == 0 or part.first_position == last + 1
        fits = part.event_count == span if is_whole else 0 < part.event_count <= span
        if not (part.first_position > last and adjoins and fits):
            yield f"the positions of {part.file} do not follow those of the part before it"
        last = part.last_position
    if last > manifest.head.position or (
        is_whole and manifest.is_complete and last != manifest.head.position
    ):
        yield "the parts do not end where the head is"
