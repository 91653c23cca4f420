"""`engines events export`: take the spine's events away, and check what was taken.

Owns the command, what it tells while it goes and at its end. Leaves the work to `engines.client.export`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_record
from engines.client import RetryPolicy
from engines.client.export import Exported, Wanted, export
from engines.client.export_files import MANIFEST, ExportDirectory, Filters, Format, Manifest, Part
from engines.errors import Invalid

# How long one call may take with its repeats: a verification reads the whole spine.
WAIT_S: Final = 600.0
# Attempts within it: at one a second and never faster than the policy's pauses, the deadline comes first.
ATTEMPTS_MAX: Final = 10_000
INTERRUPTED: Final = "interrupted: start the same command again, and it goes on where it was"


async def export_events(
    directory: Path,
    /,
    *,
    format_: Annotated[Format | None, Parameter(name="--format")] = None,
    type_: Annotated[str | None, Parameter(name="--type")] = None,
    run: str | None = None,
    user: str | None = None,
    project: str | None = None,
    since: str | None = None,
    until: str | None = None,
    part_events: int | None = None,
    verify: bool = False,
    wait_s: float = WAIT_S,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> int:
    """Export the spine into files. Started again it goes on where it was, and later with what is new.

    Parameters
    ----------
    directory
        Where to: a new directory, or one with an export of the same.
    format_
        jsonl (the default) or parquet, which needs engines[parquet].
    type_
        Only events of this type.
    run
        Only events of this run.
    user
        Only events of this user.
    project
        Only events of this project.
    since
        An RFC 3339 instant: only events from then on.
    until
        An RFC 3339 instant: only events before then.
    part_events
        Events in one file, 1 to 1,000,000. Default: 50,000.
    verify
        Export nothing: check the files against the manifest, without a server.
    wait_s
        Seconds that one call waits for its answer; the first has the whole spine read.
    """
    filters = Filters(
        event_type=type_, run_id=run, user_id=user, project_id=project, since=since, until=until
    )
    wanted = Wanted(filters=filters, format=format_, part_events=part_events)
    if verify:
        if wanted != Wanted():
            raise Invalid("--verify checks what the manifest says: leave out what to export", field="verify")
        return _verify(directory, as_json=as_json)
    retry = RetryPolicy(attempts_max=ATTEMPTS_MAX, deadline_s=wait_s, pause_max_s=1.0)
    async with connection.client(retry=retry, timeout_s=wait_s) as client:
        try:
            done = await export(client, directory, wanted, on_part=_tell)
        except asyncio.CancelledError:
            print(INTERRUPTED, file=sys.stderr)
            raise
    _print(_summary(directory, done), as_json=as_json)
    return OK


def _tell(part: Part, manifest: Manifest) -> None:
    told = f"{part.file}: {part.event_count} events, up to position {part.last_position}"
    print(f"{told} of {manifest.head.position}", file=sys.stderr, flush=True)


def _verify(directory: Path, *, as_json: bool) -> int:
    files = ExportDirectory(directory)
    manifest = files.read()
    if manifest is None:
        raise Invalid(f"{directory} holds no export", field="directory")
    problems = files.problems(manifest)
    _print({"ok": not problems, "problems": problems, **_held(files, manifest)}, as_json=as_json)
    return FAILED if problems else OK


def _summary(directory: Path, done: Exported) -> dict[str, Any]:
    new = {"new_events": done.new_events, "new_parts": done.new_parts}
    return {**_held(ExportDirectory(directory), done.manifest), **new}


def _held(files: ExportDirectory, manifest: Manifest) -> dict[str, Any]:
    return {
        "directory": str(files.path),
        "format": manifest.format,
        "filters": msgspec.to_builtins(manifest.filters),
        "event_count": manifest.event_count,
        "parts": len(manifest.parts),
        "head": {"position": manifest.head.position, "digest": manifest.head.digest},
        "manifest_sha256": files.digest(MANIFEST)[1],
    }


def _print(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    problems = told.pop("problems", ())
    head = told["head"]
    print_record({**told, "head": f"{head['position']}:{head['digest']}"}, as_json=False)
    for problem in problems:
        console().print(problem)
