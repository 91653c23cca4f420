"""An export from a server that leaves something out, repeats itself or keeps no more; the limits of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engines.client import AsyncEngines, export_formats
from engines.client import export as exports
from engines.client.export import Exported, Wanted, export
from engines.client.export_files import ExportDirectory, Filters
from engines.errors import Corrupt, Gone, TooLarge
from tests.client.loopback import Answer, Loopback, Received, Script, problem

HEAD = 6


class Spine:
    """What the scripted server says: pages of events at these positions, and whether its spine verifies."""

    def __init__(self, pages: list[list[int]], *, ok: bool = True) -> None:
        self.pages = pages
        self.ok = ok
        self.gone_from: int | None = None

    def answer(self, request: Received) -> Script:
        if request.path == "/me":
            me = {"tenant_id": "t_a", "env": "prod", "user_id": "u", "mode": "lab", "surface_id": "chat"}
            return Answer(json={**me, "roles": ["admin"], "lab": True, "sources": {}})
        if request.path.startswith("/events/verify"):
            found = {"ok": self.ok, "head": {"position": HEAD, "digest": "d"}}
            return Answer(json=found if self.ok else {**found, "bad_position": 3, "reason": "its digest"})
        if request.query.get("order") == "desc":
            return Answer(json={"items": [event(HEAD)], "after": None})
        number = int(request.query.get("after", "c0")[1:])
        if self.gone_from is not None and number >= self.gone_from:
            return problem(410, "Gone")
        # The page that begins behind this cursor.
        index = next((i for i, page in enumerate(self.pages) if page[-1] > number), len(self.pages) - 1)
        page = self.pages[index]
        after = f"c{page[-1]}" if index + 1 < len(self.pages) else None
        items = [event(position) for position in page if position > number or page.count(position) > 1]
        return Answer(json={"items": items, "after": after})


def event(position: int) -> dict[str, Any]:
    return {
        "event_id": f"e{position}",
        "position": position,
        "cursor": f"c{position}",
        "timestamp": "2026-11-21T20:00:00.000Z",
        "event_type": "message",
        "source": "ui",
        "payload": {"n": position},
    }


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def positions(path: Path) -> list[list[int]]:
    parts = sorted(path.glob("part-*"))
    return [[json.loads(line)["position"] for line in part.read_text().splitlines()] for part in parts]


async def run(
    client: AsyncEngines, server: Loopback, spine: Spine, path: Path, *, part_events: int = 2, **filters: str
) -> Exported:
    server.otherwise = spine.answer
    return await export(client, path, Wanted(filters=Filters(**filters), part_events=part_events))


async def test_every_page_up_to_the_head_and_no_further(
    client: AsyncEngines, server: Loopback, tmp_path: Path
) -> None:
    done = await run(client, server, Spine([[1, 2, 3], [4, 5], [6, 7, 8]]), tmp_path)
    assert positions(tmp_path) == [[1, 2], [3, 4], [5, 6]]
    assert (done.new_parts, done.new_events, done.manifest.is_complete) == (3, 6, True)
    assert not ExportDirectory(tmp_path).problems(done.manifest)


@pytest.mark.parametrize("pages", [[[1, 2, 4], [5, 6]], [[1, 2], [4, 5, 6]], [[1, 2, 2], [3, 4, 5, 6]]])
async def test_pages_that_leave_something_out_or_repeat_it_are_no_export(
    client: AsyncEngines, server: Loopback, tmp_path: Path, pages: list[list[int]]
) -> None:
    with pytest.raises(Corrupt):
        await run(client, server, Spine(pages), tmp_path)
    manifest = ExportDirectory(tmp_path).read()
    assert manifest is not None
    assert not manifest.is_complete
    assert names(tmp_path) == ["manifest.json", *(part.file for part in manifest.parts)]


async def test_a_filter_may_leave_something_out(
    client: AsyncEngines, server: Loopback, tmp_path: Path
) -> None:
    done = await run(client, server, Spine([[1, 4], [5]]), tmp_path, event_type="message")
    assert positions(tmp_path) == [[1, 4], [5]]
    assert done.manifest.is_complete


async def test_a_filter_repeats_nothing_and_leads_upwards(
    client: AsyncEngines, server: Loopback, tmp_path: Path
) -> None:
    with pytest.raises(Corrupt):
        await run(client, server, Spine([[1, 4, 4], [5]]), tmp_path, event_type="message")


async def test_a_spine_that_does_not_verify_is_not_exported(
    client: AsyncEngines, server: Loopback, tmp_path: Path
) -> None:
    with pytest.raises(Corrupt) as refusal:
        await run(client, server, Spine([[1]], ok=False), tmp_path)
    assert "position 3" in refusal.value.detail
    assert names(tmp_path) == []


async def test_what_is_no_longer_kept_is_told_and_what_was_taken_stays(
    client: AsyncEngines, server: Loopback, tmp_path: Path
) -> None:
    spine = Spine([[1, 2, 3], [4, 5, 6]])
    spine.gone_from = 3
    with pytest.raises(Gone):
        await run(client, server, spine, tmp_path)
    assert positions(tmp_path) == [[1, 2]]
    spine.gone_from = None
    await run(client, server, spine, tmp_path)
    assert positions(tmp_path) == [[1, 2], [3, 4], [5, 6]]


async def test_an_export_has_so_many_parts_and_no_more(
    client: AsyncEngines, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PARTS_MAX", 2)
    with pytest.raises(TooLarge):
        await run(client, server, Spine([[1, 2, 3, 4, 5, 6]]), tmp_path)
    assert positions(tmp_path) == [[1, 2], [3, 4]]
    await run(client, server, Spine([[1, 2, 3, 4, 5, 6]]), tmp_path / "larger", part_events=3)


async def test_a_part_ends_at_so_many_bytes_too(
    client: AsyncEngines, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PART_BYTES_MAX", 1_000)  # An event is about 500 here.
    await run(client, server, Spine([[1, 2, 3, 4, 5, 6]]), tmp_path, part_events=100)
    assert [len(part) for part in positions(tmp_path)] == [3, 3]


@pytest.mark.parametrize(
    ("limit", "groups"), [({"ROW_GROUP_EVENTS": 4}, [4, 2]), ({"ROW_GROUP_BYTES": 60}, [3, 3])]
)
async def test_rows_are_written_in_groups(
    client: AsyncEngines,
    server: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: dict[str, int],
    groups: list[int],
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(export_formats, name, value)
    server.otherwise = Spine([[1, 2, 3, 4, 5, 6]]).answer
    await export(client, tmp_path, Wanted(format="parquet"))
    found = pq.ParquetFile(tmp_path / "part-000001.parquet").metadata
    assert [found.row_group(index).num_rows for index in range(found.num_row_groups)] == groups
