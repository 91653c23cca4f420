"""The directory of one PostgreSQL server: made, locked while its owner lives, removed without a trace.

Owns what a server leaves on the machine, also when it was killed. Leaves processes to `postgres.py`.
"""

import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import tempfile
from pathlib import Path

from tests.servers.postgres_programs import unprivileged_user

PREFIX = "engines-postgres-"
IPC_RMID = 0


class PostgresHome:
    """The directory of one server, removed with it.

    Its lock is held while its owner lives: a directory whose lock is free was left by a run that was killed,
    and the next run removes it.
    """

    def __init__(self, parent: Path) -> None:
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.path.chmod(0o711)
        self._lock = _locked(self.path)
        assert self._lock is not None, "a directory just made is nobody else's"
        self.data = self.path / "data"
        self.log = self.path / "server.log"
        self.data.mkdir(mode=0o700)
        self._give(self.data)

    def write(self, name: str, text: str) -> None:
        """A file that the server's user alone can read."""
        path = self.path / name
        path.touch(mode=0o600)
        path.write_text(text)
        self._give(path)

    def remove(self) -> None:
        _remove_home(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _give(self, path: Path) -> None:
        if user := unprivileged_user():
            entry = pwd.getpwnam(user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def _locked(path: Path) -> int | None:
    """A descriptor holding the directory's lock; None when somebody else holds it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove what killed runs of this user left below `parent`."""
    for path in parent.glob(f"{PREFIX}*"):
        if not _is_own_home(path):
            continue
        lock = _locked(path)
        if lock is not None:
            _remove_home(path)
            os.close(lock)


def _is_own_home(path: Path) -> bool:
    try:
        return (path / "data").is_dir() and path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False  # its owner removed it meanwhile


def _remove_home(path: Path) -> None:
    _release_interlock(path / "data" / "postmaster.pid")
    shutil.rmtree(path, ignore_errors=True)


def _release_interlock(pid_file: Path) -> None:
    """Free the System V segment by which a server guards its directory, which SIGKILL leaves behind.

    The seventh line of postmaster.pid is its key and id. It is freed only while nobody is attached to it and
    the key still fits, so that an id that was given away since stays untouched.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        key, identifier = pid_file.read_text().splitlines()[6].split()
        for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[0] == key and fields[1] == identifier and fields[6] == "0":
                ctypes.CDLL(None).shmctl(int(identifier), IPC_RMID, None)
