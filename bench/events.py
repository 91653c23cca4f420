"""The events that are appended: JSON objects of exactly `EVENT_BYTES` bytes, like those of an agent's run."""

from __future__ import annotations

import random
import string

import msgspec

from bench.stage import EVENT_BYTES, SEED


def event_bodies(count: int) -> list[str]:
    """`count` different texts, the same in every run."""
    source = random.Random(SEED)
    return [_event_body(source) for _ in range(count)]


def _event_body(source: random.Random) -> str:
    event = {
        "event_type": "tool_call",
        "user_id": "u_bench",
        "surface_id": "squared2",
        "run_id": f"run-{source.randrange(10**9):09d}",
        "step_id": str(source.randrange(100)),
        "source": "agent",
        "payload": {"name": "get_reservation_details", "ok": True, "text": ""},
    }
    missing = EVENT_BYTES - len(msgspec.json.encode(event))
    event["payload"] = {
        "name": "get_reservation_details",
        "ok": True,
        "text": "".join(source.choices(string.ascii_letters + " ", k=missing)),
    }
    body = msgspec.json.encode(event).decode()
    assert len(body) == EVENT_BYTES
    return body
