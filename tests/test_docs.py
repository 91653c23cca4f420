"""The reference pages are what the code says, and every link within the documentation leads somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engines.cli import backends
from engines.client.export_files import ExportHead, Manifest, Part
from engines.client.export_formats import COLUMNS
from engines.control.records import Backend
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.routing.backends import check_config
from engines.stores.event_payloads import PAYLOADS

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for target in LINK.findall(page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_paths_of_the_code_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:src|tests|script|docs|examples)/[\w./-]+?)/?`")
    missing = [
        f"{page.name}: {path}"
        for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for path in named.findall(page.read_text("utf-8"))
        if "yours" not in path and not (ROOT / path).exists()
    ]
    assert not missing


def test_every_column_and_member_of_an_export_is_on_its_page() -> None:
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []
    members = (*Manifest.__struct_fields__, *Part.__struct_fields__, *ExportHead.__struct_fields__)
    assert [name for name in members if f'"{name}"' not in page] == []


def test_every_kind_of_payload_is_on_its_page() -> None:
    page = (ROOT / "docs" / "records" / "training.md").read_text("utf-8")
    missing = [
        kind
        for event_type, kinds in PAYLOADS.items()
        for kind, payload in kinds.items()
        if f"| `{event_type}` | `{kind}` |" not in page
        or f"[{payload.__name__}](../http.md#{payload.__name__.lower()})" not in page
    ]
    assert missing == []


@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
def test_the_command_of_a_backends_page_can_be_copied(driver: str) -> None:
    page = (ROOT / "docs" / "backends" / f"{driver}.md").read_text("utf-8")
    (text,) = re.findall(r"^engines backends (put .*?[^\\])$", page, re.MULTILINE | re.DOTALL)
    command, bound, _ = backends.app.parse_args(shlex.split(text.replace("\\\n", " ")))
    assert command is backends.put
    given = bound.arguments
    record = Backend(
        backend_id=given["backend_id"],
        driver=given["driver"],
        backend_class=given["class_"],
        config=msgspec.json.decode(given["config"]),
        secrets=given.get("secret", {}),
    )
    assert record.driver == driver
    check_config(record)


@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
def test_a_backends_page_says_what_was_not_run(driver: str) -> None:
    page = (ROOT / "docs" / "backends" / f"{driver}.md").read_text("utf-8")
    proven = page.partition("## Proven")[2]
    assert "conformance kit" in proven
    assert ("not run" in proven) is (driver != "sqlite")
