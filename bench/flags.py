"""Feature flags: one evaluation in process, and one over OFREP beside a bare POST handler of the same server.

Both evaluate a flag with targeting: a list of countries, a version, and a percentage rollout.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, Final

import uvloop

from bench.bare_post import PATH
from bench.deployment import Deployment, ServerProcess, prepare
from bench.load import Job, Load, Request
from bench.measure import Goal, Result, Stopwatch, absolute, compared
from bench.stage import CONNECTIONS, Stage
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.wiring import open_engines

KEY: Final = "banner"
USERS: Final = 200
FLAG: Final[dict[str, Any]] = {
    "state": "ENABLED",
    "variants": {"on": True, "off": False},
    "defaultVariant": "off",
    "targeting": {
        "if": [
            {
                "and": [
                    {"in": [{"var": "country"}, ["de", "at", "ch"]]},
                    {"sem_ver": [{"var": "version"}, ">=", "2.0.0"]},
                    {"ends_with": [{"var": "email"}, "@example.com"]},
                ]
            },
            {"fractional": [["on", 90], ["off", 10]]},
            None,
        ]
    },
}


def evaluation_context(number: int) -> dict[str, Any]:
    return {
        "targetingKey": f"user-{number}",
        "email": f"user-{number}@example.com",
        "country": "de",
        "version": "2.4.1",
        "plan": "pro",
    }


def flags_in_process(stage: Stage) -> list[Result]:
    directory = stage.new_directory()
    return uvloop.run(_in_process(stage, prepare(f"sqlite://{directory}/control.db", directory)))


async def _in_process(stage: Stage, deployment: Deployment) -> list[Result]:
    contexts = [evaluation_context(number) for number in range(USERS)]
    count = stage.sizes.flag_evaluations
    costs: list[float] = []
    cpu_costs: list[float] = []
    async with open_engines(deployment.control_plane) as engines:
        mine = await engines.contexts.context(deployment.token)
        await engines.definitions.create(mine, SCHEMA_NAMED["flags"], DefinitionInput(id=KEY, json_blob=FLAG))
        for number in range(stage.sizes.rounds + 1):
            watch = Stopwatch()
            for index in range(count):
                evaluation = await engines.flags.evaluate(mine, KEY, contexts[index % USERS])
                assert evaluation.reason == "TARGETING_MATCH"
            seconds, cpu_seconds = watch.seconds(), watch.cpu_seconds()
            if number > 0:
                costs.append(seconds / count * 1e6)
                cpu_costs.append(cpu_seconds / count * 1e6)
    return [
        absolute(
            costs,
            name="flags-in-process",
            what="one flag with targeting and a rollout, in process, reads each second included",
            unit="µs",
            goal=Goal("at most", 20, "µs"),
            notes={
                "evaluations a round": count,
                "CPU µs": round(sorted(cpu_costs)[len(cpu_costs) // 2], 1),
            },
        )
    ]


def flags_ofrep(stage: Stage) -> list[Result]:
    deployment = prepare(stage.new_database(), stage.new_directory())
    bodies = [json.dumps({"context": evaluation_context(number)}) for number in range(USERS)]
    server = ServerProcess(
        ["-m", "bench.bare_post"], directory=stage.new_log_directory(), first_input=deployment.control_plane
    )
    with server, Load() as load:
        _define(server.port, deployment.token)
        sides = [
            (deployment.token, [Request("POST", f"/ofrep/v1/evaluate/flags/{KEY}", body) for body in bodies]),
            (None, [Request("POST", PATH, body) for body in bodies]),
        ]
        rates: list[list[float]] = [[], []]
        for number in range(stage.sizes.rounds + 1):
            for (token, requests), kept in zip(sides, rates, strict=True):
                report = load.run(
                    Job(
                        port=server.port,
                        token=token,
                        requests=requests,
                        count=stage.sizes.http_requests,
                        connections=CONNECTIONS,
                    )
                )
                if number > 0:
                    kept.append(report.rate)
    return [
        compared(
            *rates,
            name="flags-ofrep",
            what=f"POST /ofrep/v1/evaluate/flags/{{key}}, PostgreSQL, one worker, {CONNECTIONS} connections",
            unit="requests/s",
            other_name="a bare POST handler of the same server",
            goal=Goal("at least", 0.7),
            notes={"requests a round": stage.sizes.http_requests},
        )
    ]


def _define(port: int, token: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request("POST", "/flags", json.dumps({"id": KEY, "json_blob": FLAG}), headers)
        reply = connection.getresponse()
        answer = reply.read()
        if reply.status != 201:
            raise RuntimeError(f"a flag was refused: {answer!r}")
    finally:
        connection.close()
