"""The scan for committed secrets finds what it is there to find, and stays quiet where it should.

The scan of this checkout itself is a step of script/test; here it looks at planted files.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.checks.secrets import Finding, scan, tracked_files

# Put together here, so that this file holds none of them.
RANDOM_HEX = "9f1c04b7d2e84a63" + "b05e7f3c1d96a82e"
PLANTED = {
    "private key": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\n",
    "AWS key": "id = AKIA" + "Q3EGRTYPLMNBVCXZ\n",
    "GitHub token": "t = ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8\n",
    "token": "t = eyJhbGci" + "OiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3\n",
    "password in a URL": "url = postgresql://admin:" + "Xq7kPz2w@db.internal/x\n",
}


def found_in(root: Path, name: str, text: str) -> list[Finding]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return scan(root, [name])


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("name", ["src/a.py", "tests/a.py", "docs/a.md", "seed.json"])
def test_a_secret_of_known_shape_is_found_in_every_file(tmp_path: Path, name: str, kind: str) -> None:
    assert found_in(tmp_path, name, PLANTED[kind])


def test_a_random_literal_is_found_in_source_and_not_in_tests(tmp_path: Path) -> None:
    assert found_in(tmp_path, "src/a.py", f'key = "{RANDOM_HEX}"\n')
    assert not found_in(tmp_path, "tests/a.py", f'key = "{RANDOM_HEX}"\n')


def test_a_password_is_found_in_a_settings_file(tmp_path: Path) -> None:
    assert found_in(tmp_path, "src/seed.json", '{"password": "' + 'correct-horse"}\n')


def test_a_finding_never_holds_the_secret(tmp_path: Path) -> None:
    assert RANDOM_HEX not in repr(found_in(tmp_path, "src/a.py", f'key = "{RANDOM_HEX}"\n'))


def test_a_line_marked_as_no_secret_is_passed_over(tmp_path: Path) -> None:
    assert not found_in(tmp_path, "src/a.py", f'key = "{RANDOM_HEX}"  # pragma: allowlist secret\n')


def test_a_placeholder_is_no_password_and_what_only_begins_like_one_is(tmp_path: Path) -> None:
    assert not found_in(tmp_path, "docs/a.md", "postgresql://user:password" + "@host:5432/db\n")
    assert found_in(tmp_path, "docs/a.md", "postgresql://user:password" + "7@host:5432/db\n")


def test_a_file_not_yet_added_is_scanned_and_an_ignored_one_is_not(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, env=environment)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    (tmp_path / "new.py").touch()
    (tmp_path / "ignored.py").touch()
    assert tracked_files(tmp_path) == [".gitignore", "new.py"]
