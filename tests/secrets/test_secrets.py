"""Secrets: handles lead to values in three places, and no value ever shows where a handle should."""

# ruff: noqa: ASYNC240 (a test may wait for its own files)
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.core.secrets import HANDLE_CHARACTERS_MAX, Secrets, parse_handle
from engines.drivers.registry import SECRET_SOURCES, secret_sources
from engines.drivers.secrets.json_file import FILE_BYTES_MAX
from engines.drivers.secrets.mount import SECRET_BYTES_MAX
from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret
from tests.secrets.refusals import VALUE, refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"db": {"password": VALUE, "port": 5432, "none": None}, "top": "é☃"}))
    return path


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    path = tmp_path / "mounted"
    (path / "nested").mkdir(parents=True)
    (path / "db").write_text(VALUE + "\n")
    (path / "nested" / "key").write_text(VALUE)
    (tmp_path / "outside").write_text(VALUE)
    return path


@pytest.fixture
def secrets(file: Path, mounted: Path) -> Secrets:
    return Secrets(secret_sources(file=str(file), directory=str(mounted)))


# --- handles ---


def test_the_registry_has_its_sources() -> None:
    sources = {"env", "json", "file", "aws", "google", "azure"}
    assert set(SECRET_SOURCES) == sources == set(secret_sources())


@pytest.mark.parametrize("handle", ["env:A", "json:a/b", "file:/run/x", "a1:x", "e:a:b"])
def test_a_handle_is_a_scheme_and_a_name(handle: str) -> None:
    scheme, name = parse_handle(handle)
    assert f"{scheme}:{name}" == handle


@pytest.mark.parametrize(
    "handle",
    [
        "",
        ":",
        "env",
        "env:",
        ":NAME",
        "ENV:NAME",
        "env NAME",
        "env:a b",
        "env:a\n",
        "\nenv:a",
        "env:é",
        "env:\x00",
        "1e:x",
        "e-v:x",
        VALUE,
        "env:" + "a" * HANDLE_CHARACTERS_MAX,
    ],
)
async def test_a_malformed_handle_is_invalid_and_is_not_repeated(secrets: Secrets, handle: str) -> None:
    await refused(secrets, handle, Invalid)


@pytest.mark.parametrize("handle", ["gsm:name", "vault:a", "http://x/y", f"x:{VALUE}"])
async def test_an_unknown_scheme_is_invalid_and_the_known_ones_are_listed(
    secrets: Secrets, handle: str
) -> None:
    error = await refused(secrets, handle, Invalid)
    assert "env, json, file" in error.detail


@given(st.text())
def test_any_text_is_a_handle_or_invalid(handle: str) -> None:
    try:
        scheme, name = parse_handle(handle)
    except Invalid:
        return
    assert f"{scheme}:{name}" == handle


def test_a_secret_does_not_show() -> None:
    secret = Secret(VALUE)
    assert VALUE not in f"{secret!r} {secret} {[secret]}"
    assert secret.reveal() == VALUE


# --- env ---


async def test_a_variable_with_the_prefix_is_read(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINES_SECRET_DB", VALUE)
    assert (await secrets.resolve("env:ENGINES_SECRET_DB")).reveal() == VALUE
    monkeypatch.setenv("ENGINES_SECRET_DB", "rotated")
    assert (await secrets.resolve("env:ENGINES_SECRET_DB")).reveal() == "rotated"


@pytest.mark.parametrize(
    "name",
    ["HOME", "PATH", "ENGINES_CONTROL_PLANE", "ENGINES_SECRET_", "engines_secret_db", "XENGINES_SECRET_A"],
)
async def test_no_other_variable_can_be_named(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, VALUE)
    await refused(secrets, f"env:{name}", Invalid)


@pytest.mark.parametrize("value", [None, ""])
async def test_a_variable_that_is_not_set_is_refused_by_name(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("ENGINES_SECRET_DB", raising=False)
    if value is not None:
        monkeypatch.setenv("ENGINES_SECRET_DB", value)
    assert "env:ENGINES_SECRET_DB" in (await refused(secrets, "env:ENGINES_SECRET_DB", BackendRefused)).detail


# --- json ---


async def test_member_names_lead_to_a_string(secrets: Secrets) -> None:
    assert (await secrets.resolve("json:db/password")).reveal() == VALUE
    assert (await secrets.resolve("json:top")).reveal() == "é☃"


@pytest.mark.parametrize(
    "name", ["db", "db/port", "db/none", "missing", "db/missing", "top/deeper", "db/password/0"]
)
async def test_what_is_no_string_in_the_file_is_refused_by_name(secrets: Secrets, name: str) -> None:
    assert f"json:{name}" in (await refused(secrets, f"json:{name}", BackendRefused)).detail


@pytest.mark.parametrize("name", ["/db", "db/", "db//password", "/"])
async def test_an_empty_member_name_is_invalid(secrets: Secrets, name: str) -> None:
    await refused(secrets, f"json:{name}", Invalid)


async def test_a_rotated_secret_is_seen_however_the_file_was_changed(secrets: Secrets, file: Path) -> None:
    """Replaced whole; and in place, to the same size and time, which no cache by those could tell."""
    await secrets.resolve("json:db/password")
    replacement = file.with_suffix(".new")
    replacement.write_text(json.dumps({"db": {"password": "second"}}))
    replacement.replace(file)
    assert (await secrets.resolve("json:db/password")).reveal() == "second"
    before = file.stat()
    file.write_text(json.dumps({"db": {"password": "sec0nd"}}))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await secrets.resolve("json:db/password")).reveal() == "sec0nd"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        f'{{"db": {{"password": "{VALUE}"'.encode(),
        f'{{"db": "{VALUE}", \xff}}'.encode("latin-1"),
        b'{"db": "' + VALUE.encode() + b'\xff"}',
        b"[" * 100_000,
        f'["{VALUE}"]'.encode(),
    ],
)
async def test_a_broken_file_is_refused_and_its_text_is_not_told(
    secrets: Secrets, file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    await refused(secrets, "json:db/password", BackendRefused)


async def test_the_file_has_a_limit_of_size_and_is_a_file(secrets: Secrets, file: Path) -> None:
    text = json.dumps({"db": {"password": VALUE}})
    file.write_text(text + " " * (FILE_BYTES_MAX - len(text)))
    assert (await secrets.resolve("json:db/password")).reveal() == VALUE
    file.write_text(text + " " * (FILE_BYTES_MAX - len(text) + 1))
    await refused(secrets, "json:db/password", BackendRefused)
    file.unlink()
    await refused(secrets, "json:db/password", BackendRefused)
    os.mkfifo(file)
    await refused(secrets, "json:db/password", BackendRefused)
    file.unlink()
    file.mkdir()
    await refused(secrets, "json:db/password", BackendRefused)


# --- file ---


async def test_a_name_below_the_mount_is_read_without_its_line_end(secrets: Secrets, mounted: Path) -> None:
    for name in ("db", "nested/key", f"{mounted}/db"):
        assert (await secrets.resolve(f"file:{name}")).reveal() == VALUE


@pytest.mark.parametrize(
    ("content", "value"), [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")]
)
async def test_one_line_end_is_no_part_of_a_secret(
    secrets: Secrets, mounted: Path, content: str, value: str
) -> None:
    (mounted / "db").write_bytes(content.encode())
    assert (await secrets.resolve("file:db")).reveal() == value


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "nested/../db",
        "nested/../../outside",
        "..",
        ".",
        "./db",
        "/",
        "//db",
        "nested//key",
        "nested/",
        "/etc/passwd",
        "MOUNTED-evil/x",
        "MOUNTED/../outside",
        "OUTSIDE",
    ],
)
async def test_a_path_trick_is_invalid(secrets: Secrets, mounted: Path, name: str) -> None:
    (mounted.parent / "mounted-evil").mkdir()
    (mounted.parent / "mounted-evil" / "x").write_text(VALUE)
    name = name.replace("MOUNTED", str(mounted)).replace("OUTSIDE", str(mounted.parent / "outside"))
    await refused(secrets, f"file:{name}", Invalid)


async def test_a_link_within_the_mount_is_followed_and_one_that_leads_out_is_not(
    secrets: Secrets, mounted: Path
) -> None:
    """The first is how Kubernetes rotates a mounted secret."""
    (mounted / "..2026_11").mkdir()
    (mounted / "..2026_11" / "token").write_text(VALUE)
    (mounted / "..data").symlink_to("..2026_11")
    (mounted / "token").symlink_to("..data/token")
    assert (await secrets.resolve("file:token")).reveal() == VALUE
    (mounted / "out").symlink_to("../outside")
    (mounted / "away").symlink_to(mounted.parent)
    (mounted / "loop").symlink_to("loop")
    for name in ("out", "away/outside", "loop"):
        assert f"file:{name}" in (await refused(secrets, f"file:{name}", BackendRefused)).detail


async def test_a_mount_that_is_itself_a_link_is_the_directory_behind_it(mounted: Path) -> None:
    link = mounted.parent / "link"
    link.symlink_to(mounted)
    secrets = Secrets(secret_sources(directory=str(link)))
    assert (await secrets.resolve("file:db")).reveal() == VALUE


async def test_a_rotated_file_is_seen(secrets: Secrets, mounted: Path) -> None:
    await secrets.resolve("file:db")
    (mounted / "db").write_text("second")
    assert (await secrets.resolve("file:db")).reveal() == "second"


async def test_what_is_no_readable_text_file_is_refused_by_name(secrets: Secrets, mounted: Path) -> None:
    os.mkfifo(mounted / "fifo")
    (mounted / "empty").write_text("\n")
    (mounted / "binary").write_bytes(VALUE.encode() + b"\xff")
    (mounted / "big").write_text("a" * (SECRET_BYTES_MAX + 1))
    for name in ("missing", "nested", "fifo", "empty", "binary", "big"):
        assert f"file:{name}" in (await refused(secrets, f"file:{name}", BackendRefused)).detail
    (mounted / "big").write_text("a" * SECRET_BYTES_MAX)
    assert len((await secrets.resolve("file:big")).reveal()) == SECRET_BYTES_MAX


@pytest.mark.parametrize("handle", ["json:a", "file:a"])
async def test_a_source_that_was_given_no_place_is_refused(handle: str) -> None:
    error = await refused(Secrets(secret_sources()), handle, BackendRefused)
    assert "no secrets" in error.detail
