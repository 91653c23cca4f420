"""Runs a server so that it cannot outlive the process that wanted it.

Owns the leash: a small process between the owner and the server. It holds the read end of a pipe whose write
end only the owner has; when the owner ends, by whatever signal, the pipe closes and the leash kills the
server with everything below it. The server in turn dies with the leash (PR_SET_PDEATHSIG), so a kill -9 of
either, or of the process group that all three share, leaves nothing behind. A death signal straight from the
owner would not do: it fires when the *thread* that started the server ends.

Leaves to others what is run (`postgres.py`) and where its files are.
"""

import contextlib
import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class LeashedProcess:
    """One running server: `pid` is the server's own; `wait` returns when it *and its children* are reaped."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        user: str | None = None,
        cwd: str = "/",
        remove: Path | None = None,
    ) -> None:
        """Start `argv`, its output appended to `log`; `user` is a user name to run as, for an owner that is
        root.

        `remove` is a directory the leash deletes if the owner dies first. Raises `OSError` or
        `subprocess.SubprocessError` where the server could not be executed.
        """
        command = [sys.executable, "-S", "-E", __file__, user or "", str(remove or ""), *argv]
        with log.open("ab") as output:
            self._leash = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=dict(env), cwd=cwd
            )
        assert self._leash.stdout is not None
        line = self._leash.stdout.readline()
        if not line:
            self._close_pipes()
            raise ChildProcessError(
                f"{argv[0]} could not be executed: {log.read_text(errors='replace')[-500:]}"
            )
        self.pid = int(line)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the server alone; nothing happens if it has ended."""
        if self._leash.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def is_running(self) -> bool:
        return self._leash.poll() is None

    def wait(self, timeout_s: float) -> int:
        """Wait until the server and all its children are gone. Raises `subprocess.TimeoutExpired`."""
        code = self._leash.wait(timeout_s)
        self._close_pipes()
        return code

    def kill(self, timeout_s: float) -> None:
        """SIGKILL the server and everything below it, and wait until it is gone."""
        if self.is_running():
            kill_tree(self.pid)
        self.wait(timeout_s)

    def _close_pipes(self) -> None:
        for pipe in (self._leash.stdin, self._leash.stdout):
            if pipe is not None:
                pipe.close()
        self._leash.wait()


def descendants(pid: int) -> list[int]:
    """The ids of all processes below `pid`, without itself; empty when it has ended."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field is the command in brackets and may hold anything; the parent is the second
            # after it.
            parent = int(status.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL `pid` and its descendants. It is stopped first, so that it starts no more while they are
    listed.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for victim in [*descendants(pid), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)


def _start(argv: Sequence[str], user: str) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a dead server's children come to us, and we reap them
    leash_pid = os.getpid()

    def die_with_the_leash() -> None:
        # Runs in the child after its user has changed, since changing the user clears the death signal.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != leash_pid:
            os._exit(1)

    user_id = group_id = other_groups = None
    if user:
        entry = pwd.getpwnam(user)
        user_id, group_id, other_groups = entry.pw_uid, entry.pw_gid, list[int]()
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=die_with_the_leash,  # noqa: PLW1509  # the leash has one thread
        user=user_id,
        group=group_id,
        extra_groups=other_groups,
    )


def _reap_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def main(user: str, remove: str, argv: Sequence[str]) -> int:
    """Run `argv` until it ends or the owner does; returns its exit status, 128 + n after signal n."""
    # A terminal's Ctrl-C reaches the whole group. The server decides what it does then; the leash goes on
    # holding it. Handlers and not SIG_IGN, because a program that is executed inherits SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    server = _start(argv, user)
    os.write(1, b"%d\n" % server.pid)
    exited = os.pidfd_open(server.pid)
    ready, _, _ = select.select([0, exited], [], [])
    owner_ended = exited not in ready
    if owner_ended:
        kill_tree(server.pid)
    code = server.wait()
    if owner_ended:
        for orphan in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
    _reap_all()
    if owner_ended and remove:
        shutil.rmtree(remove, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
