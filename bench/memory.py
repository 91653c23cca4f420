"""What an idle server holds in RAM, and whether a million requests of many kinds make it more.

The growth is counted from where the warm-up ends to the end of the run; what a client of its own can make a
server keep (notes, events) lies in the database. A server that kept 100 bytes a request would grow by 86
MiB.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from bench.deployment import engines_server, prepare
from bench.load import Job, Load, Request
from bench.measure import Goal, Result, absolute
from bench.serving import create_notes, note_body
from bench.stage import CONNECTIONS, Stage

MIB = 1024 * 1024
IDLE_MIB_MAX = 90
# Arenas and caches of bounded size fill up by so much, and later breathe by so much. A leak of three bytes a
# request does not hide in the one, nor of one in the other.
GROWTH_MIB_MAX = 2
LATE_GROWTH_MIB_MAX = 0.5
IDLE_S = 3.0
SAMPLES = 10
MEMORY_KEYS = 50


def memory_idle(stage: Stage) -> list[Result]:
    deployment = prepare(stage.new_database(), stage.new_directory())
    with engines_server(deployment, stage.new_log_directory()) as server:
        time.sleep(IDLE_S)
        resident = server.resident_bytes() / MIB
    return [
        absolute(
            [resident],
            name="memory-idle",
            what="resident memory of an idle server, PostgreSQL, one worker",
            unit="MiB",
            goal=Goal("at most", IDLE_MIB_MAX, "MiB"),
            notes={"seconds after its start": IDLE_S},
        )
    ]


def memory_growth(stage: Stage) -> list[Result]:
    deployment = prepare(stage.new_database(), stage.new_directory())
    total, warm = stage.sizes.memory_requests, stage.sizes.memory_warm_requests
    with engines_server(deployment, stage.new_log_directory()) as server, Load() as load:
        requests = list(_mixed(create_notes(server.port, deployment.token, [note_body(0)])[0]))

        def send(count: int) -> None:
            load.run(
                Job(
                    port=server.port,
                    token=deployment.token,
                    requests=requests,
                    count=count,
                    connections=CONNECTIONS,
                )
            )

        send(warm)
        samples = [server.resident_bytes() / MIB]
        for _ in range(SAMPLES):
            send((total - warm) // SAMPLES)
            samples.append(server.resident_bytes() / MIB)
    return _growth(samples, total, warm)


def _growth(samples: list[float], total: int, warm: int) -> list[Result]:
    """From the warm-up on; and in the last half of that, when whatever is bounded has reached its bound."""
    middle = len(samples) // 2
    taken = {"MiB after each tenth": " ".join(f"{sample:.1f}" for sample in samples)}
    return [
        absolute(
            [samples[-1] - samples[0]],
            name="memory-growth",
            what=f"growth of a server's memory from request {warm:,} to {total:,}, PostgreSQL",
            unit="MiB",
            goal=Goal("at most", GROWTH_MIB_MAX, "MiB"),
            notes=taken,
        ),
        absolute(
            [samples[-1] - samples[middle]],
            name="memory-growth-late",
            what="its growth in the last half of these requests",
            unit="MiB",
            goal=Goal("at most", LATE_GROWTH_MIB_MAX, "MiB"),
            notes=taken,
        ),
    ]


def _mixed(note_id: str) -> Iterator[Request]:
    """Reads, writes, lists and refusals, of the stores that a session uses."""
    event = json.dumps({"event_type": "tool_call", "payload": {"name": "get_user", "ok": True}})
    for number in range(MEMORY_KEYS):
        yield Request("GET", f"/notes/{note_id}")
        yield Request("GET", "/me")
        yield Request("POST", "/notes", note_body(number), status=201)
        yield Request("GET", "/notes?limit=5&order=desc")
        yield Request("POST", "/events", event, status=201)
        yield Request("GET", "/events?limit=5&order=desc")
        yield Request("GET", f"/memory/s{number}/absent", status=404)
        yield Request("POST", "/notes", '{"content": 1}', status=400)
        yield Request("GET", f"/notes/nobody-has-this-{number}", status=404)
        yield Request("POST", f"/streams/thread-{number}/events", event, status=201)
