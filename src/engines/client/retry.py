"""Repeating a request: the one place that decides whether, and when.

Owns the policy and its limits. A request is repeated only if that cannot do it twice:

    the error         a read   a write with a key or ids   any other write
    Unavailable       yes      yes                         yes               nothing was applied
    Throttled         yes      yes                         yes               after `Retry-After`
    RequestTimeout    yes      yes                         yes               the body never arrived whole
    OutcomeUnknown    yes      yes                         no
    everything else   no       no                          no

A key is an Idempotency-Key, under which the server answers a repeat as it answered first; ids of its own are
the client's event ids, by which the log knows an event again. Leaves classifying errors to
`client/problems.py`.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, TypeVar

import msgspec

from engines.clock import Clock, SystemClock
from engines.errors import (
    BackendRefused,
    EnginesError,
    MissingRoute,
    OutcomeUnknown,
    RequestTimeout,
    Throttled,
    Unavailable,
)

T = TypeVar("T")

ATTEMPTS_MAX: Final = 8
DEADLINE_S: Final = 30.0
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
_DOUBLINGS_MAX: Final = 20
# These say that their own attempt was not applied, before the server looked for an earlier one.
_NOT_APPLIED: Final = (Unavailable, Throttled, RequestTimeout, BackendRefused, MissingRoute)


class Repeat(enum.Enum):
    """What a second arrival of the request would do."""

    READ = "read"  # Nothing.
    RECOGNISED = "recognised"  # The server knows it again and answers as before.
    APPLIED = "applied"  # It would be applied once more.


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the repeats of one call. `attempts_max` counts the first attempt.

    `deadline_s` covers the whole call: no attempt begins, and no pause ends, after it.
    """

    attempts_max: int = ATTEMPTS_MAX
    deadline_s: float = DEADLINE_S
    pause_first_s: float = PAUSE_FIRST_S
    pause_max_s: float = PAUSE_MAX_S

    def __post_init__(self) -> None:
        assert self.attempts_max >= 1
        assert 0 < self.pause_first_s <= self.pause_max_s

    def ceiling_s(self, attempt: int) -> float:
        """The longest pause after attempt number `attempt`, from 1."""
        return min(self.pause_max_s, self.pause_first_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))


NO_RETRY: Final = RetryPolicy(attempts_max=1)


class Retries:
    """Runs calls under a policy."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.policy = policy
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311  it spreads clients in time and guards nothing
        self._sleep = sleep

    async def run(self, attempt: Callable[[float], Awaitable[T]], *, repeat: Repeat) -> T:
        """Call `attempt(remaining_s)` until it succeeds, or its error may not, or no longer, be repeated.

        What a later attempt was refused for says nothing about an earlier one whose reply was lost: then
        the call ends with OutcomeUnknown, and the refusal is its cause.
        """
        ends_at = self._clock.monotonic() + self.policy.deadline_s
        number = 1
        in_doubt = False
        while True:
            try:
                return await attempt(max(ends_at - self._clock.monotonic(), 0.0))
            except EnginesError as error:
                pause_s = self._pause_s(number, error)
                late = self._clock.monotonic() + pause_s >= ends_at
                if not may_repeat(error, repeat) or number >= self.policy.attempts_max or late:
                    if in_doubt and isinstance(error, _NOT_APPLIED):
                        raise OutcomeUnknown("the reply to an earlier attempt was lost") from error
                    raise
                in_doubt = in_doubt or (isinstance(error, OutcomeUnknown) and repeat is not Repeat.READ)
            await self._sleep(pause_s)
            number += 1

    def now(self) -> float:
        """The instant by the clock that deadlines are measured with."""
        return self._clock.monotonic()

    async def pause(self, number: int, error: EnginesError | None = None) -> None:
        """Wait as before attempt `number` + 1. For whoever keeps a connection up for longer than one call."""
        await self._sleep(self._pause_s(number, error))

    def _pause_s(self, number: int, error: EnginesError | None) -> float:
        """From half the ceiling to all of it, so that clients refused together do not come back together."""
        ceiling_s = self.policy.ceiling_s(number)
        jittered = self._random.uniform(ceiling_s / 2, ceiling_s)
        told = None if error is None else error.retry_after_s
        return jittered if told is None else told + jittered


def may_repeat(error: EnginesError, repeat: Repeat) -> bool:
    """Whether the request that met `error` may be sent again."""
    if isinstance(error, Unavailable | Throttled | RequestTimeout):
        return True
    return isinstance(error, OutcomeUnknown) and repeat is not Repeat.APPLIED
