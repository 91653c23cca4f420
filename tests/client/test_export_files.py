"""The files of an export by themselves: what a write that fails leaves, and where an export goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.client.export_files import ExportDirectory, ExportHead, Filters, Manifest, Part
from engines.errors import Conflict


def part(first: int, last: int) -> Part:
    return Part(
        file=f"part-{first:06d}.jsonl",
        first_position=first,
        last_position=last,
        event_count=last - first + 1,
        byte_count=0,
        sha256="",
        cursor=f"c{last}",
    )


def manifest(*parts: Part, earlier: int | None = None) -> Manifest:
    return Manifest(
        tenant_id="t_one",
        env="prod",
        format="jsonl",
        part_events=10,
        filters=Filters(),
        head=ExportHead(99, "d", "c99"),
        earlier_head=None if earlier is None else ExportHead(earlier, "d", f"c{earlier}"),
        parts=parts,
    )


def test_a_write_that_fails_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    directory = ExportDirectory(tmp_path)
    with directory.writing("part-000001.jsonl") as file:
        file.write(b"whole")
    # The file is closed under its writer: bringing it to disk fails.
    with pytest.raises(ValueError, match="closed file"), directory.writing("part-000001.jsonl") as file:
        file.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"part-000001.jsonl": b"whole"}


def test_what_is_being_written_has_no_name_yet(tmp_path: Path) -> None:
    directory = ExportDirectory(tmp_path)
    with directory.writing("part-000001.jsonl") as file:
        file.write(b"half")
        assert not list(tmp_path.glob("part-*"))
    assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("part-*")] == [0o600]


@pytest.mark.parametrize(
    ("stands", "reached"),
    [
        (manifest(), (0, None)),
        (manifest(part(1, 10), part(11, 20)), (20, "c20")),
        # Up to the head of the run before, nothing behind the last part was let through.
        (manifest(part(1, 10), earlier=50), (50, "c50")),
        (manifest(part(1, 10), part(60, 61), earlier=50), (61, "c61")),
        (manifest(earlier=0), (0, None)),
    ],
)
def test_an_export_goes_on_behind_what_it_has_seen(stands: Manifest, reached: tuple[int, str | None]) -> None:
    assert stands.reached == reached


def test_a_manifest_is_read_as_it_was_saved(tmp_path: Path) -> None:
    directory = ExportDirectory(tmp_path)
    assert directory.read() is None
    directory.save(manifest(part(1, 10), earlier=5))
    assert directory.read() == manifest(part(1, 10), earlier=5)


def test_a_directory_is_held_by_one_at_a_time_and_made_private(tmp_path: Path) -> None:
    directory = ExportDirectory(tmp_path / "a" / "b")
    with directory.held():
        assert directory.path.stat().st_mode & 0o777 == 0o700
        with pytest.raises(Conflict), ExportDirectory(directory.path).held():
            pass
    with ExportDirectory(directory.path).held():
        pass


def test_what_a_killed_export_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    directory = ExportDirectory(tmp_path)
    directory.save(manifest())
    for name in (".part-000007.jsonl.writing", ".manifest.json.writing", ".part-7.txt", "README"):
        (tmp_path / name).write_text("x")
    with directory.held():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".part-7.txt", "README", "manifest.json"]
