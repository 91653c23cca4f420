"""Time that passes by itself on a clock that is moved by hand: for processes that wait for each other."""

from __future__ import annotations

import asyncio

from engines.testing.clock import ManualClock


async def ticking(clock: ManualClock, step_s: float = 0.01) -> None:
    """Until cancelled."""
    while True:
        clock.advance(step_s)
        await asyncio.sleep(0.01)
