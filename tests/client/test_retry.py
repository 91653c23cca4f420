"""One retry policy: only what cannot be done twice, within attempts and a deadline."""

from __future__ import annotations

from random import Random

import pytest

from engines import errors
from engines.client import AsyncEngines, NewEvent, NewNote, RetryPolicy
from engines.client.retry import Repeat, Retries, may_repeat
from engines.errors import EnginesError, NotFound, OutcomeUnknown, Throttled, Unavailable
from engines.testing.clock import ManualClock
from tests.client.conftest import QUICK
from tests.client.loopback import Answer, Drop, HalfAnswer, Loopback, Silence, problem

NOTE = {"note_id": "n1", "tenant_id": "t_a", "title": "", "content": "x", "etag": '"1"'}
APPENDED = {"events": [{"event_id": "0" * 8, "position": 1, "cursor": "c1"}]}

REFUSED = (errors.Unavailable, errors.Throttled, errors.RequestTimeout)
OTHERS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EnginesError) and kind not in (*REFUSED, OutcomeUnknown)
]


@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("kind", REFUSED)
def test_what_was_refused_may_always_be_repeated(kind: type[EnginesError], repeat: Repeat) -> None:
    assert may_repeat(kind("no"), repeat)


@pytest.mark.parametrize(
    ("repeat", "allowed"), [(Repeat.READ, True), (Repeat.RECOGNISED, True), (Repeat.APPLIED, False)]
)
def test_an_unknown_outcome_is_repeated_only_where_that_does_nothing_twice(
    repeat: Repeat, *, allowed: bool
) -> None:
    assert may_repeat(OutcomeUnknown("?"), repeat) is allowed


@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_no_other_error_is_repeated(kind: type[EnginesError], repeat: Repeat) -> None:
    assert not may_repeat(kind("no"), repeat)


class Attempts:
    """Fails with the given errors, then answers.

    Keeps the pauses that were asked for on a clock moved by hand.
    """

    def __init__(self, *failures: EnginesError, takes_s: float = 0.0) -> None:
        self.failures = list(failures)
        self.clock = ManualClock()
        self.pauses_s: list[float] = []
        self.remaining_s: list[float] = []
        self._takes_s = takes_s

    async def __call__(self, remaining_s: float) -> str:
        self.remaining_s.append(remaining_s)
        self.clock.advance(self._takes_s)
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    async def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.clock.advance(pause_s)

    def retries(self, policy: RetryPolicy) -> Retries:
        return Retries(policy, clock=self.clock, random=Random(7), sleep=self.sleep)


async def test_pauses_grow_to_their_longest_and_are_jittered() -> None:
    attempts = Attempts(*[Unavailable("away")] * 7)
    policy = RetryPolicy(attempts_max=8, deadline_s=100, pause_first_s=1, pause_max_s=4)
    assert await attempts.retries(policy).run(attempts, repeat=Repeat.READ) == "done"
    for pause_s, ceiling_s in zip(attempts.pauses_s, [1, 2, 4, 4, 4, 4, 4], strict=True):
        assert ceiling_s / 2 <= pause_s <= ceiling_s
    assert len(set(attempts.pauses_s)) == 7


async def test_attempts_are_bounded() -> None:
    attempts = Attempts(*[Unavailable("away")] * 10)
    with pytest.raises(Unavailable):
        await attempts.retries(RetryPolicy(attempts_max=3, deadline_s=100)).run(attempts, repeat=Repeat.READ)
    assert len(attempts.remaining_s) == 3


async def test_no_attempt_begins_past_the_deadline() -> None:
    attempts = Attempts(*[Unavailable("away")] * 100, takes_s=2.0)
    policy = RetryPolicy(attempts_max=100, deadline_s=10, pause_first_s=1, pause_max_s=1)
    with pytest.raises(Unavailable):
        await attempts.retries(policy).run(attempts, repeat=Repeat.READ)
    assert all(remaining_s > 0 for remaining_s in attempts.remaining_s)
    assert attempts.clock.monotonic() - ManualClock().monotonic() <= 12.0


async def test_each_attempt_is_told_how_much_time_is_left() -> None:
    attempts = Attempts(Unavailable("away"), takes_s=2.0)
    policy = RetryPolicy(attempts_max=5, deadline_s=10, pause_first_s=1, pause_max_s=1)
    await attempts.retries(policy).run(attempts, repeat=Repeat.READ)
    assert attempts.remaining_s[0] == 10.0
    assert attempts.remaining_s[1] < 8.0


async def test_retry_after_is_waited_for() -> None:
    attempts = Attempts(Throttled("slow down", retry_after_s=5))
    await attempts.retries(RetryPolicy(deadline_s=100)).run(attempts, repeat=Repeat.APPLIED)
    assert attempts.pauses_s[0] >= 5


async def test_a_retry_after_past_the_deadline_is_told_at_once() -> None:
    attempts = Attempts(Throttled("slow down", retry_after_s=50))
    with pytest.raises(Throttled):
        await attempts.retries(RetryPolicy(deadline_s=10)).run(attempts, repeat=Repeat.READ)
    assert attempts.pauses_s == []


@pytest.mark.parametrize("refusal", [*REFUSED, errors.BackendRefused, errors.MissingRoute])
async def test_what_refuses_a_repeat_says_nothing_about_the_attempt_whose_reply_was_lost(
    refusal: type[EnginesError],
) -> None:
    policy = RetryPolicy(attempts_max=3, deadline_s=100)
    attempts = Attempts(OutcomeUnknown("lost"), *[refusal("no")] * 5)
    with pytest.raises(OutcomeUnknown) as caught:
        await attempts.retries(policy).run(attempts, repeat=Repeat.RECOGNISED)
    assert isinstance(caught.value.__cause__, refusal)
    reading = Attempts(OutcomeUnknown("lost"), *[refusal("no")] * 5)
    with pytest.raises(refusal):
        await reading.retries(policy).run(reading, repeat=Repeat.READ)


async def test_the_servers_own_word_on_a_repeat_is_the_answer() -> None:
    attempts = Attempts(OutcomeUnknown("lost"), NotFound("there is no such record"))
    with pytest.raises(NotFound):
        await attempts.retries(RetryPolicy(deadline_s=100)).run(attempts, repeat=Repeat.RECOGNISED)


# --- over HTTP ---


async def test_a_repeat_carries_the_same_key_and_bytes(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend([Drop(), problem(503, "Unavailable"), Answer(201, json=NOTE)])
    note = await client.notes.create(NewNote(content="x"))
    assert note.note_id == "n1"
    first, *repeats = server.received
    assert len(repeats) == 2
    assert first.headers["Idempotency-Key"]
    for repeated in repeats:
        assert repeated.headers["Idempotency-Key"] == first.headers["Idempotency-Key"]
        assert repeated.body == first.body


async def test_two_calls_have_two_keys(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend([Answer(201, json=NOTE)] * 2)
    await client.notes.create(NewNote(content="x"))
    await client.notes.create(NewNote(content="x"))
    first, second = server.received
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


async def test_without_a_key_a_write_with_unknown_outcome_is_not_repeated(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=QUICK, mint_keys=False) as client:
        server.script.extend([Drop(), Answer(201, json=NOTE)])
        with pytest.raises(OutcomeUnknown):
            await client.notes.create(NewNote(content="x"))
    assert len(server.received) == 1
    assert "Idempotency-Key" not in server.received[0].headers


async def test_without_a_key_a_write_that_was_refused_is_repeated(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=QUICK, mint_keys=False) as client:
        server.script.extend([problem(503, "Unavailable"), problem(429, "Throttled"), Answer(201, json=NOTE)])
        await client.notes.create(NewNote(content="x"))
    assert len(server.received) == 3


async def test_a_key_of_the_callers_own_is_used(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=QUICK, mint_keys=False) as client:
        server.script.extend([HalfAnswer(), Answer(201, json=NOTE)])
        await client.notes.create(NewNote(content="x"), idempotency_key="mine")
    assert [request.headers["Idempotency-Key"] for request in server.received] == ["mine", "mine"]


async def test_an_append_whose_events_all_carry_ids_needs_no_key(
    client: AsyncEngines, server: Loopback
) -> None:
    server.script.extend([Drop(), Answer(201, json=APPENDED)])
    event = NewEvent(event_type="x", payload={}, event_id="018f3c1e-0000-7000-8000-000000000001")
    await client.events.append([event])
    assert [("Idempotency-Key" in request.headers) for request in server.received] == [False, False]


@pytest.mark.parametrize("expected_position", [None, 0])
async def test_an_append_that_the_log_would_not_know_again_has_a_key(
    client: AsyncEngines, server: Loopback, expected_position: int | None
) -> None:
    server.script.extend([Drop(), Answer(201, json=APPENDED)])
    own = "018f3c1e-0000-7000-8000-000000000001"
    events = [NewEvent(event_type="x", payload={}, event_id=None if expected_position is None else own)]
    await client.streams.append("s", events, expected_position=expected_position)
    assert len({request.headers["Idempotency-Key"] for request in server.received}) == 1


async def test_a_read_is_repeated_after_any_break(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend([HalfAnswer(), problem(503, "OutcomeUnknown"), problem(503, "Unavailable")])
    server.script.append(Answer(200, json=NOTE))
    assert (await client.notes.get("n1")).content == "x"


async def test_what_the_caller_must_decide_is_not_repeated(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(problem(404, "NotFound"))
    with pytest.raises(NotFound):
        await client.notes.get("n1")
    assert len(server.received) == 1


async def test_a_probe_is_repeated_without_a_key(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend([HalfAnswer(), Answer(200, json={"backend_id": "b", "ok": True})])
    assert (await client.backends.probe("b")).ok
    assert all("Idempotency-Key" not in request.headers for request in server.received)


async def test_the_deadline_covers_an_attempt_that_is_never_answered(server: Loopback) -> None:
    policy = RetryPolicy(attempts_max=50, deadline_s=0.4, pause_first_s=0.001, pause_max_s=0.001)
    async with AsyncEngines(server.url, retry=policy, timeout_s=30) as client:
        server.script.extend([Silence()] * 50)
        with pytest.raises(Unavailable):
            await client.notes.get("n1")
    assert len(server.received) == 1
