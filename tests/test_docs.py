"""The reference pages are what the code says, and every link within the documentation leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

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
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for target in LINK.findall(page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_paths_of_the_code_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:src|tests|script|docs|examples)/[\w./-]+?)/?`")
    missing = [
        f"{page.name}: {path}"
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for path in named.findall(page.read_text("utf-8"))
        if "yours" not in path and not (ROOT / path).exists()
    ]
    assert not missing
