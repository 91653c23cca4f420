"""A circuit: a backend that does not answer is left alone for a moment, and callers learn so at once.

Owns when the circuit of one backend in one process opens, and how it closes again. Leaves what a failure is
to `core/documents.py`. Without it every call to a backend that hangs would last as long as its deadline, and
hold what its caller holds.

It opens once there were `FAILURES_MAX` failures over at least `FAILING_S`, with no answer between them: a
shorter absence is bridged by retries. While it is open one call every `TRY_S` goes through; an answer closes
it.
"""

from __future__ import annotations

from typing import Final

from engines.clock import Clock
from engines.errors import Unavailable

FAILURES_MAX: Final = 8
FAILING_S: Final = 3.0
TRY_S: Final = 0.5


class Circuit:
    """The circuit of one backend. Not shared between event loops."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_open = False
        """Whether calls are refused, but for one now and then."""
        self._failures = 0
        self._failing_since_s = 0.0
        self._try_at_s = 0.0

    def admit(self) -> None:
        """Raises Unavailable where the circuit is open and this call is not the one that tries."""
        if not self.is_open:
            return
        now_s = self._clock.monotonic()
        if now_s < self._try_at_s:
            raise Unavailable("the backend does not answer", retry_after_s=TRY_S)
        self._try_at_s = now_s + TRY_S

    def succeeded(self) -> None:
        """The backend answered, be it with a refusal."""
        self._failures = 0
        self.is_open = False

    def failed(self) -> None:
        """It did not answer, or not in time."""
        now_s = self._clock.monotonic()
        if self._failures == 0:
            self._failing_since_s = now_s
        self._failures += 1
        self.is_open = self._failures >= FAILURES_MAX and now_s - self._failing_since_s >= FAILING_S
