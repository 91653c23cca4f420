"""Slots: so many of one thing at a time, of one tenant and of all together.

Owns counting who holds one in this process. What costs for as long as it lasts (following a log, walking a
whole log) is bounded so: one tenant cannot take what the others need, nor all together what the process has.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from engines.errors import Throttled


class Slots:
    """`what` is named to whoever gets none, and `retry_after_s` is when they may ask again."""

    def __init__(self, what: str, *, tenant_max: int, process_max: int, retry_after_s: float) -> None:
        assert 0 < tenant_max <= process_max
        self._what = what
        self._tenant_max = tenant_max
        self._process_max = process_max
        self._retry_after_s = retry_after_s
        self._held: Counter[str] = Counter()
        self._count = 0

    def take(self, tenant_id: str) -> None:
        """Raises Throttled where the tenant, or all together, hold as many as they may."""
        if self._held[tenant_id] >= self._tenant_max:
            raise self._refusal(f"a tenant has at most {self._tenant_max}")
        if self._count >= self._process_max:
            raise self._refusal(f"a process has at most {self._process_max}")
        self._held[tenant_id] += 1
        self._count += 1

    def give_back(self, tenant_id: str) -> None:
        """What `take` gave."""
        assert self._held[tenant_id] > 0
        self._count -= 1
        self._held[tenant_id] -= 1
        if not self._held[tenant_id]:
            del self._held[tenant_id]

    @contextlib.contextmanager
    def hold(self, tenant_id: str) -> Iterator[None]:
        """One for as long as the block lasts. Raises Throttled."""
        self.take(tenant_id)
        try:
            yield
        finally:
            self.give_back(tenant_id)

    def _refusal(self, rule: str) -> Throttled:
        return Throttled(f"{rule} {self._what} at a time", retry_after_s=self._retry_after_s)
