"""Notes over HTTP, one worker, beside a bare Litestar handler that runs the same statements.

Both servers stand ready all the time; the load goes to one and then to the other. Reads go round through
notes that were made before, so both sides read as many different rows.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable

import msgspec

from bench.deployment import ServerProcess, engines_server, prepare
from bench.load import Job, Load, Report, Request
from bench.measure import Goal, Result, compared
from bench.stage import CONNECTIONS, Stage

NOTES_READ = 200
NOTE_CHARS = 300


class Target(msgspec.Struct, frozen=True):
    """A server, and what it is asked."""

    port: int
    token: str | None
    reads: list[Request]
    writes: list[Request]


def http_postgres(stage: Stage) -> list[Result]:
    return _http(stage, "postgres", "PostgreSQL", stage.new_database())


def http_sqlite(stage: Stage) -> list[Result]:
    return _http(stage, "sqlite", "SQLite", f"sqlite://{stage.new_directory()}/data.db")


def _http(stage: Stage, name: str, label: str, url: str) -> list[Result]:
    deployment = prepare(url, stage.new_directory())
    with (
        engines_server(deployment, stage.new_log_directory()) as ours,
        bare_server(url, stage) as bare,
        Load() as load,
    ):
        targets = [_target(ours.port, deployment.token), _target(bare.port, None)]
        return [
            _alternating(
                load,
                targets,
                stage,
                lambda target: target.reads,
                name=f"http-get-{name}",
                what=f"GET /notes/{{id}}, {label}, one worker, {CONNECTIONS} connections",
                goal=Goal("at least", 0.7),
            ),
            _alternating(
                load,
                targets,
                stage,
                lambda target: target.writes,
                name=f"http-post-{name}",
                what=f"POST /notes, {label}, one worker, {CONNECTIONS} connections",
                goal=Goal("at least", 0.6),
            ),
        ]


def bare_server(url: str, stage: Stage) -> ServerProcess:
    return ServerProcess(["-m", "bench.bare_litestar"], directory=stage.new_log_directory(), first_input=url)


def note_body(number: int) -> str:
    text = f"Note {number}: " + "the agent asked for the reservation and was told. " * 6
    return json.dumps({"title": f"Note {number}", "content": text[:NOTE_CHARS], "tags": ["bench", "note"]})


def _target(port: int, token: str | None) -> Target:
    writes = [Request("POST", "/notes", note_body(number), status=201) for number in range(NOTES_READ)]
    ids = create_notes(port, token, [request.body for request in writes])
    return Target(port, token, [Request("GET", f"/notes/{note_id}") for note_id in ids], writes)


def create_notes(port: int, token: str | None, bodies: list[str]) -> list[str]:
    """The ids of new notes."""
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ids: list[str] = []
    try:
        for body in bodies:
            connection.request("POST", "/notes", body.encode(), headers)
            reply = connection.getresponse()
            answer = reply.read()
            if reply.status != 201:
                raise RuntimeError(f"a note was refused: {answer!r}")
            ids.append(json.loads(answer)["note_id"])
    finally:
        connection.close()
    return ids


def _alternating(
    load: Load,
    targets: list[Target],
    stage: Stage,
    requests: Callable[[Target], list[Request]],
    *,
    name: str,
    what: str,
    goal: Goal,
) -> Result:
    rates: list[list[float]] = [[], []]
    tails: list[list[float]] = [[], []]
    for number in range(stage.sizes.rounds + 1):
        for index, target in enumerate(targets):
            report = _run(load, target, requests(target), stage.sizes.http_requests)
            if number > 0:
                rates[index].append(report.rate)
                tails[index].append(report.p99_ms)
    return compared(
        *rates,
        name=name,
        what=what,
        unit="requests/s",
        other_name="a bare Litestar handler, the same statement",
        goal=goal,
        notes={
            "requests a round": stage.sizes.http_requests,
            "p99 ms, ours": round(sorted(tails[0])[len(tails[0]) // 2], 2),
            "p99 ms, the other": round(sorted(tails[1])[len(tails[1]) // 2], 2),
        },
    )


def _run(load: Load, target: Target, requests: list[Request], count: int) -> Report:
    return load.run(
        Job(
            port=target.port,
            token=target.token,
            requests=requests,
            count=count,
            connections=CONNECTIONS,
        )
    )
