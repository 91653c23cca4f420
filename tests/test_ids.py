"""Random bytes are drawn many at a time, and none of them is handed out twice."""

import itertools
import subprocess
import sys

from engines.clock import SystemClock
from engines.ids import DRAWN_BYTES, Ids


def counted() -> tuple[Ids, list[int]]:
    """Ids from a source that never repeats four bytes, and the sizes of what was drawn from it."""
    numbers = itertools.count()
    draws: list[int] = []

    def source(count: int) -> bytes:
        draws.append(count)
        return b"".join(next(numbers).to_bytes(4) for _ in range(-(-count // 4)))[:count]

    return Ids(SystemClock(), source), draws


def test_no_byte_is_handed_out_twice() -> None:
    ids, _ = counted()
    taken = b"".join(ids.token(size) for size in (16, 8, 16, DRAWN_BYTES, 4, DRAWN_BYTES + 4, 16) * 40)
    words = [taken[start : start + 4] for start in range(0, len(taken), 4)]
    assert len(set(words)) == len(words)


def test_a_token_has_the_length_that_was_asked_for() -> None:
    ids, _ = counted()
    for size in (0, 1, 16, DRAWN_BYTES - 1, DRAWN_BYTES, DRAWN_BYTES + 1, 3 * DRAWN_BYTES, 1):
        assert len(ids.token(size)) == size


def test_many_ids_cost_one_draw() -> None:
    ids, draws = counted()
    for _ in range(DRAWN_BYTES // 16):
        ids.write_id()
    assert draws == [DRAWN_BYTES]


def test_a_child_of_a_fork_makes_other_ids_than_its_parent() -> None:
    program = """
import os
from engines.clock import SystemClock
from engines.ids import Ids
ids = Ids(SystemClock())
ids.write_id()
child = os.fork()
os.write(1, f"{ids.write_id()}\\n".encode())
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    first, second = done.stdout.split()
    assert first != second
