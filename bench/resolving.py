"""What every request pays before its store is asked: its context and its route, both seen before."""

from __future__ import annotations

import uvloop

from bench.deployment import Deployment, prepare
from bench.measure import Goal, Result, Stopwatch, absolute
from bench.stage import Stage
from engines.catalogue import NOTES
from engines.wiring import open_engines


def resolving(stage: Stage) -> list[Result]:
    directory = stage.new_directory()
    deployment = prepare(f"sqlite://{directory}/control.db", directory)
    return uvloop.run(_resolving(stage, deployment))


async def _resolving(stage: Stage, deployment: Deployment) -> list[Result]:
    headers = [
        (b"host", b"127.0.0.1:8080"),
        (b"user-agent", b"bench"),
        (b"accept", b"application/json"),
        (b"authorization", f"Bearer {deployment.token}".encode()),
        (b"content-type", b"application/json"),
        (b"x-run-id", b"run-1"),
    ]
    count = stage.sizes.route_resolutions
    costs: list[float] = []
    async with open_engines(deployment.control_plane) as engines:
        contexts, router = engines.contexts, engines.router
        for number in range(stage.sizes.rounds + 1):
            watch = Stopwatch()
            for _ in range(count):
                context = await contexts.context_of(headers)
                async with router.changing(NOTES, context):
                    pass
            seconds = watch.seconds()
            if number > 0:
                costs.append(seconds / count * 1e6)
    return [
        absolute(
            costs,
            name="resolve",
            what="context and route of a change, both seen before",
            unit="µs",
            goal=Goal("at most", 10, "µs"),
            notes={"resolutions a round": count},
        )
    ]
