"""Turns on one stream, by rules and a clock alone; `testing/log/processes.py` has real processes."""

from __future__ import annotations

import itertools

import pytest

from engines.core.commits import Turn
from engines.core.contention import (
    BERTH_S,
    COMMIT_S_MAX,
    FOREIGN_REMEMBERED_S,
    LOOK_S_MAX,
    LOSER_COMMITS_MAX,
    LOSER_LOOKS_MAX,
    PATIENCE_S,
    TENURE_ALONE_S,
    TENURE_ALONE_S_MIN,
    TENURE_LOOKS,
    TENURE_S_MAX,
    WAIT_S_MAX,
    WRITERS_MAX,
    YIELD_COMMITS,
    Contention,
)
from engines.core.documents import TIMEOUT_S
from engines.core.tail import Tail
from engines.testing.clock import ManualClock

COMMIT_S = 0.002
TENURE_S = 0.064  # of commits of that length


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def contention(clock: ManualClock) -> Contention:
    return Contention(clock, "me")


def tail_at(clock: ManualClock, position: int, turn: Turn | None) -> Tail:
    """The end of a log as a commit shows it that was made just now."""
    return Tail(position, "", int(clock.now() * 1000), position, turn)


def commit(contention: Contention, clock: ManualClock, position: int, before: Turn | None) -> Turn | None:
    """One commit, COMMIT_S long; returns what it says."""
    turn = contention.turn_behind(before)
    started_s = clock.monotonic()
    clock.advance(COMMIT_S)
    contention.won(started_s, position)
    return turn


def wait(contention: Contention, clock: ManualClock, turn: Turn) -> None:
    """A commit of another is seen, and while this process waits, the next one that says `turn`."""
    contention.pause_s(tail_at(clock, 101, Turn(("a",), 10)))
    contention.pause_s(tail_at(clock, 102, turn))


def tenure(contention: Contention, clock: ManualClock, before: Turn | None) -> tuple[int, Turn, float]:
    """Commits until others are to go on: the last position, what it says, and how long the tenure was."""
    began_s = clock.monotonic()
    turn = before
    for position in range(1, 1_000):
        turn = commit(contention, clock, position, turn)
        if contention.pause_s(tail_at(clock, position, turn)) > 0:
            assert turn is not None
            return position, turn, clock.monotonic() - began_s
    raise AssertionError("the winner never makes way")


def look(contention: Contention, clock: ManualClock, seconds: float, times: int = 20) -> None:
    """The tail is read, as often as it takes to know how long that lasts here."""
    for _ in range(times):
        clock.advance(seconds)
        contention.looked(clock.monotonic() - seconds)


def alone(contention: Contention, clock: ManualClock, position: int) -> tuple[int, float]:
    """Commits up to a pause, and the pause: the last position, and how long the commits went on."""
    began_s = clock.monotonic()
    while not contention.pause_s(tail_at(clock, position, None)):
        position += 1
        assert commit(contention, clock, position, None) is None
    went_on_s = clock.monotonic() - began_s
    clock.advance(contention.pause_s(tail_at(clock, position, None)))
    assert contention.pause_s(tail_at(clock, position, None)) == 0
    return position, went_on_s


def test_who_is_alone_says_nothing_and_looks_up_soon_and_then_less_and_less_down_to_once_a_second(
    contention: Contention, clock: ManualClock
) -> None:
    position, went_on_s = alone(contention, clock, 0)
    assert went_on_s == pytest.approx(TENURE_S, abs=2 * COMMIT_S)
    position, went_on_s = alone(contention, clock, position)
    assert went_on_s == pytest.approx(2 * TENURE_ALONE_S_MIN, abs=2 * COMMIT_S)
    for _ in range(10):
        position, went_on_s = alone(contention, clock, position)
    assert went_on_s == pytest.approx(TENURE_ALONE_S, abs=2 * COMMIT_S)


def test_who_met_another_looks_up_soon_again(contention: Contention, clock: ManualClock) -> None:
    position = 0
    for _ in range(10):
        position, _ = alone(contention, clock, position)
    commit(contention, clock, position + 1, None)
    contention.lost(clock.monotonic() - COMMIT_S)
    clock.advance(FOREIGN_REMEMBERED_S + COMMIT_S)
    _, went_on_s = alone(contention, clock, position + 2)
    assert went_on_s == pytest.approx(TENURE_S, abs=2 * COMMIT_S)


def test_who_met_another_makes_way_after_a_tenure_and_says_so_with_its_last_commit(
    contention: Contention, clock: ManualClock
) -> None:
    contention.lost(clock.monotonic() - COMMIT_S)
    last, turn, took_s = tenure(contention, clock, None)
    assert took_s == pytest.approx(TENURE_S, abs=2 * COMMIT_S)
    assert turn == Turn(("me",), 0)
    assert 0 <= contention.pause_s(tail_at(clock, last, turn)) - YIELD_COMMITS * COMMIT_S <= 2 * COMMIT_S


def test_a_tenure_ends_when_its_writer_said_however_fast_its_commits_become(
    contention: Contention, clock: ManualClock
) -> None:
    """Who waits looks when it was told to: what is left of a tenure cut short is nobody's."""
    contention.lost(clock.monotonic() - COMMIT_S)
    tenure(contention, clock, None)
    for _ in range(20):
        clock.advance(3 * COMMIT_S)
        contention.lost(clock.monotonic() - 3 * COMMIT_S)
    claimed = contention.turn_behind(Turn(("a", "me"), 0))
    _, _, took_s = tenure(contention, clock, Turn(("a", "me"), 0))
    assert claimed is not None
    assert claimed.left_ms > 2 * TENURE_S * 1000
    assert took_s == pytest.approx(claimed.left_ms / 1000, abs=3 * COMMIT_S)


def test_where_looks_are_dear_a_tenure_is_worth_some_of_them(
    contention: Contention, clock: ManualClock
) -> None:
    look(contention, clock, 0.04)
    contention.lost(clock.monotonic() - COMMIT_S)
    _, _, took_s = tenure(contention, clock, None)
    assert took_s == pytest.approx(TENURE_LOOKS * 0.04, abs=2 * COMMIT_S)


def test_where_looks_are_dear_a_pause_is_long_enough_for_another_to_look_and_commit(
    contention: Contention, clock: ManualClock
) -> None:
    look(contention, clock, 0.04)
    contention.lost(clock.monotonic() - COMMIT_S)
    last, turn, _ = tenure(contention, clock, None)
    assert contention.pause_s(tail_at(clock, last, turn)) >= 0.04 + YIELD_COMMITS * COMMIT_S


def test_where_looks_are_dear_who_waits_for_many_looks_seldom(clock: ManualClock) -> None:
    turn = Turn(tuple(f"w{n}" for n in range(WRITERS_MAX)), 0)
    cheap, dear = Contention(clock, "w1"), Contention(clock, "w1")
    look(dear, clock, 0.04)
    assert PATIENCE_S <= cheap.pause_s(tail_at(clock, 7, turn)) <= PATIENCE_S + COMMIT_S_MAX
    assert 4 * PATIENCE_S <= dear.pause_s(tail_at(clock, 7, turn)) <= WAIT_S_MAX


def test_where_looks_are_dear_a_loser_does_not_look_at_once(
    contention: Contention, clock: ManualClock
) -> None:
    look(contention, clock, COMMIT_S / 4)
    assert contention.lost(clock.monotonic() - COMMIT_S) <= LOSER_COMMITS_MAX * COMMIT_S
    look(contention, clock, 0.04)
    pauses = [contention.lost(clock.monotonic() - COMMIT_S) for _ in range(100)]
    assert max(pauses) > 0.04


def test_one_look_that_took_for_ever_is_no_measure(contention: Contention, clock: ManualClock) -> None:
    look(contention, clock, 3_600)
    assert contention.lost(clock.monotonic() - COMMIT_S) <= LOSER_LOOKS_MAX * LOOK_S_MAX
    _, _, took_s = tenure(contention, clock, None)
    assert took_s <= TENURE_S_MAX + COMMIT_S


def test_who_is_next_looks_once_the_last_commit_of_a_tenure_had_its_time(clock: ManualClock) -> None:
    """It is under way when the tenure ends: a look before that is in vain."""
    turn = Turn(("a", "b", "c"), 20)
    for _ in range(20):
        following, newcomer = Contention(clock, "c"), Contention(clock, "new")
        assert following.pause_s(tail_at(clock, 7, turn)) >= 0.02 + COMMIT_S
        # Who has no place yet comes first, or it would not get one for long.
        assert newcomer.pause_s(tail_at(clock, 7, turn)) <= 0.02 + COMMIT_S


def test_another_that_is_not_seen_again_is_forgotten(contention: Contention, clock: ManualClock) -> None:
    contention.lost(clock.monotonic() - COMMIT_S)
    clock.advance(FOREIGN_REMEMBERED_S)
    assert commit(contention, clock, 1, None) is None


def test_who_had_no_turn_for_longest_goes_at_once_and_the_others_wait_a_tenure_each(
    clock: ManualClock,
) -> None:
    turn = Turn(("a", "b", "c", "d"), 0)
    pauses = {name: Contention(clock, name).pause_s(tail_at(clock, 7, turn)) for name in "bcd"}
    assert pauses["d"] == 0
    assert TENURE_S <= pauses["c"] <= TENURE_S + 2 * COMMIT_S
    assert 2 * TENURE_S <= pauses["b"] <= 2 * TENURE_S + 2 * COMMIT_S


def test_while_the_tail_moves_everybody_waits_behind_it(contention: Contention, clock: ManualClock) -> None:
    for position in range(20):
        assert contention.pause_s(tail_at(clock, position, Turn(("a", "me"), 10))) > 0
        clock.advance(COMMIT_S)


def test_who_does_not_come_is_passed_over_and_leaves_the_order(
    contention: Contention, clock: ManualClock
) -> None:
    turn = Turn(("a", "me", "gone"), 0)
    wait(contention, clock, Turn(("gone", "a"), 10))
    clock.advance(contention.pause_s(tail_at(clock, 7, turn)))
    assert contention.pause_s(tail_at(clock, 7, turn)) == 0
    taken = contention.turn_behind(turn)
    assert taken is not None
    assert taken.writers == ("me", "a")


def test_who_is_not_in_the_order_may_go_at_the_end_of_a_tenure_and_puts_nobody_out(
    contention: Contention, clock: ManualClock
) -> None:
    turn = Turn(("a", "b"), 0)
    wait(contention, clock, Turn(("a", "b"), 10))
    assert contention.pause_s(tail_at(clock, 7, turn)) == 0
    taken = contention.turn_behind(turn)
    assert taken is not None
    assert taken.writers == ("me", "a", "b")


def test_who_did_not_have_to_wait_for_others_leaves_no_order(
    contention: Contention, clock: ManualClock
) -> None:
    """Names of processes that ended, and of those that append now and then, would stay in it for ever."""
    turn = Turn(("a", "b", "gone"), 0)
    contention.pause_s(tail_at(clock, 7, turn))
    taken = contention.turn_behind(turn)
    assert taken is not None
    assert taken.writers == ("me",)


def test_a_single_append_keeps_the_others_for_a_few_commits_alone(
    contention: Contention, clock: ManualClock
) -> None:
    """Nobody knows that more comes before it came, whatever was a minute ago."""
    contention.lost(clock.monotonic() - COMMIT_S)
    tenure(contention, clock, Turn(("a", "me"), 0))
    for position in range(1_000, 1_010):
        clock.advance(60)
        contention.pause_s(tail_at(clock, position, Turn(("a", "me"), 0)))
        taken = commit(contention, clock, position, Turn(("a", "me"), 0))
        if position > 1_000:
            assert taken is None or taken.left_ms <= YIELD_COMMITS * COMMIT_S * 1000


def test_who_makes_single_appends_keeps_nobody_from_the_log(
    contention: Contention, clock: ManualClock
) -> None:
    """Their commits move the tail whenever this process looks, and claim time each time."""
    began_s = clock.monotonic()
    position = 0
    while pause_s := contention.pause_s(tail_at(clock, position, Turn(("a", "me", "b", "c"), 12))):
        clock.advance(pause_s)
        position += 1
    assert clock.monotonic() - began_s <= WAIT_S_MAX + PATIENCE_S


def test_who_does_not_come_for_a_moment_is_not_forgotten(contention: Contention, clock: ManualClock) -> None:
    """Nobody loses where turns are kept; that others had theirs is seen by their commits."""
    contention.lost(clock.monotonic() - COMMIT_S)
    clock.advance(FOREIGN_REMEMBERED_S)
    contention.pause_s(tail_at(clock, 7, Turn(("b", "me"), 0)))
    assert contention.turn_behind(Turn(("me", "b"), 0)) is not None


def test_a_rotation_of_slow_writers_is_shorter_than_a_request_may_take(
    contention: Contention, clock: ManualClock
) -> None:
    for _ in range(100):
        contention.lost(clock.monotonic() - 2 * COMMIT_S_MAX)
    turn = contention.turn_behind(None)
    began_s, position = clock.monotonic(), 0
    while not contention.pause_s(tail_at(clock, position, turn)) or position == 0:
        position += 1
        turn = contention.turn_behind(turn)
        clock.advance(COMMIT_S_MAX)
        contention.won(clock.monotonic() - COMMIT_S_MAX, position)
    tenure_s = clock.monotonic() - began_s
    assert WRITERS_MAX * tenure_s < TIMEOUT_S / 2


def test_who_had_more_at_the_end_of_its_tenure_claims_a_whole_one_next_time(
    contention: Contention, clock: ManualClock
) -> None:
    contention.lost(clock.monotonic() - COMMIT_S)
    tenure(contention, clock, Turn(("a", "me"), 0))
    taken = contention.turn_behind(Turn(("a", "me"), 0))
    assert taken is not None
    assert taken.left_ms == pytest.approx(TENURE_S * 1000, abs=2)


def test_after_its_turn_a_writer_lets_all_others_have_theirs(
    contention: Contention, clock: ManualClock
) -> None:
    wait(contention, clock, Turn(("a", "b", "me"), 0))
    last, turn, _ = tenure(contention, clock, Turn(("a", "b", "me"), 0))
    assert turn.writers == ("me", "a", "b")
    pause_s = contention.pause_s(tail_at(clock, last, turn))
    assert pause_s >= 2 * TENURE_S - COMMIT_S
    clock.advance(pause_s)
    assert contention.pause_s(tail_at(clock, last, turn)) == 0  # Nobody came:
    alone = contention.turn_behind(turn)
    assert alone is None or alone.writers == ("me",)  # they are put out.


def test_a_pause_that_was_slept_is_over_on_a_clock_that_stands_still(
    contention: Contention, clock: ManualClock
) -> None:
    tail = tail_at(clock, 7, Turn(("a", "b"), 10))
    assert contention.pause_s(tail) > 0
    contention.waited()
    assert contention.pause_s(tail) == 0
    assert contention.pause_s(tail_at(clock, 8, Turn(("a", "b"), 10))) > 0


def test_a_name_that_none_of_ours_has_is_not_handed_on(contention: Contention, clock: ManualClock) -> None:
    wait(contention, clock, Turn(("a", "b"), 10))
    taken = contention.turn_behind(Turn(("x" * 100_000, "a"), 0))
    assert taken is not None
    assert taken.writers == ("me", "a")


@pytest.mark.parametrize(
    "left_ms", [-(10**400), 10**400, 10**12, 1_000], ids=["least", "most", "long", "a second"]
)
@pytest.mark.parametrize("others", [1, 500])
def test_what_another_says_keeps_nobody_for_long(
    contention: Contention, clock: ManualClock, left_ms: int, others: int
) -> None:
    turn = Turn(("a", "me", *(f"w{n}" for n in range(others))), left_ms)
    assert contention.pause_s(tail_at(clock, 7, turn)) <= PATIENCE_S + COMMIT_S_MAX


def test_an_order_is_bounded(contention: Contention, clock: ManualClock) -> None:
    wait(contention, clock, Turn(("a", "b"), 10))
    taken = contention.turn_behind(Turn(tuple(f"w{n}" for n in range(50)), 0))
    assert taken is not None
    assert len(taken.writers) == WRITERS_MAX


def test_what_was_said_long_ago_keeps_nobody(contention: Contention, clock: ManualClock) -> None:
    tail = tail_at(clock, 7, Turn(("a", "b", "c"), 60))
    clock.advance(60)
    assert contention.pause_s(tail) == 0


@pytest.mark.parametrize("skew_s", [-3_600, 3_600])
def test_a_clock_that_is_wrong_keeps_nobody_for_long(
    contention: Contention, clock: ManualClock, skew_s: float
) -> None:
    turn = Turn(("a", "b", "me", "c"), 60)
    tail = Tail(7, "", int((clock.now() + skew_s) * 1000), 7, turn)
    assert contention.pause_s(tail) <= PATIENCE_S + COMMIT_S_MAX


def test_who_gave_up_waiting_waits_again_the_next_time(contention: Contention, clock: ManualClock) -> None:
    others = Turn(("a", "b"), 1_000)
    assert contention.pause_s(tail_at(clock, 8, others)) > 0
    clock.advance(3_600)
    assert contention.pause_s(tail_at(clock, 16, others)) > 0
    turn = contention.turn_behind(others)
    assert turn is not None
    assert turn.writers == ("me",), "nobody was seen to write while it waited"


def test_who_never_rests_leaves_a_berth_and_more_seldom_where_nobody_comes(
    contention: Contention, clock: ManualClock
) -> None:
    position, berths = 0, list[float]()
    while clock.monotonic() < 200:
        position += 1
        commit(contention, clock, position, None)
        if (pause_s := contention.pause_s(tail_at(clock, position, None))) >= BERTH_S / 2:
            berths.append(clock.monotonic())
        clock.advance(pause_s)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *berths])]
    assert gaps == pytest.approx([6, 12, 24, 48, 60], abs=2 * TENURE_ALONE_S)


def test_where_commits_are_slow_a_lone_writer_rests_no_larger_part_of_its_time(
    contention: Contention, clock: ManualClock
) -> None:
    position, rested_s = 0, 0.0
    while clock.monotonic() < 300:
        position += 1
        started_s = clock.monotonic()
        clock.advance(COMMIT_S_MAX)
        contention.won(started_s, position)
        pause_s = contention.pause_s(tail_at(clock, position, None))
        rested_s += pause_s
        clock.advance(pause_s)
    assert rested_s < 0.08 * 300


def test_who_gave_up_after_a_loss_pauses_again_as_long_the_next_time(
    contention: Contention, clock: ManualClock
) -> None:
    look(contention, clock, 0.02)
    contention.lost(clock.monotonic() - COMMIT_S)
    clock.advance(3_600)
    pauses = [contention.lost(clock.monotonic() - COMMIT_S) for _ in range(50)]
    assert max(pauses) > LOSER_LOOKS_MAX * 0.02 / 2
    clock.advance(WAIT_S_MAX)
    for _ in range(10):
        clock.advance(WAIT_S_MAX / 5)
        contention.lost(clock.monotonic() - COMMIT_S)
    pauses = [contention.lost(clock.monotonic() - COMMIT_S) for _ in range(50)]
    assert max(pauses) < 2 * COMMIT_S, "who only loses tries again at once"


def test_who_rests_leaves_no_berth_beside(contention: Contention, clock: ManualClock) -> None:
    position = 0
    while clock.monotonic() < 60:
        position += 1
        commit(contention, clock, position, None)
        assert contention.pause_s(tail_at(clock, position, None)) < BERTH_S / 2
        if position % 500 == 0:
            clock.advance(1.0)
        else:
            clock.advance(contention.pause_s(tail_at(clock, position, None)))


def test_a_commit_whose_reply_was_lost_is_of_ones_own(contention: Contention, clock: ManualClock) -> None:
    contention.lost(clock.monotonic() - COMMIT_S)
    clock.advance(1.0)
    turn = contention.turn_behind(None)
    contention.landed(8)
    assert contention.pause_s(tail_at(clock, 8, turn)) == 0, "nobody waits for a turn of its own"
