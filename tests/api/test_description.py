"""The OpenAPI description: that it is one, complete, and holds when the server is fuzzed from it."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UnsetType

from engines.api.app import ROUTERS
from engines.api.openapi import describe, router_for
from tests.servers.lab import LabServer

ENDPOINTS = [endpoint for router in ROUTERS for endpoint in router.endpoints]
DOCUMENT: dict[str, Any] = json.loads(json.dumps(describe([*ENDPOINTS, *router_for(ENDPOINTS).endpoints])))

# The contract's calls that this release serves.
CALLS = """
GET /me
POST,GET /tenants
GET,PATCH /tenants/{tenant_id}
PUT,GET,DELETE /tenants/{tenant_id}/members/{user_id}
POST /tenants/{tenant_id}/members/{user_id}/accept
POST,GET /users
POST,GET /users/{user_id}/erase
PUT,DELETE /users/{user_id}/hold
GET,PUT /modes/{mode}
POST,GET /oses
GET,PATCH /oses/{os_id}
POST,GET /surfaces
GET,PATCH /surfaces/{surface_id}
POST,GET /apps
GET,PATCH /apps/{app_id}
POST,GET /projects
GET,PATCH /projects/{project_id}
POST,GET /keys
DELETE /keys/{key_id}
PUT,GET,DELETE /issuers/{issuer_id}
PUT,GET,DELETE /backends/{backend_id}
GET /backends
POST /backends/{backend_id}/probe
GET /routes
PUT,DELETE /routes/{resource_kind}
GET /routes/{resource_kind}/resolve
GET /routes/{resource_kind}/history
POST /routes/{resource_kind}/move
GET /moves
GET /moves/{move_id}
POST /moves/{move_id}/cancel
POST /moves/{move_id}/retire
GET /health/live
GET /health/ready
GET /metrics
GET /diagnostics/routes
GET /bootstrap
POST,GET /events
GET /events/{event_id}
GET /events/stream
GET /events/export
GET /events/verify
GET /events/index
POST /events/index/rebuild
POST,GET /streams/{stream_id}/events
GET /streams/{stream_id}/stream
PUT,GET,DELETE /tables/{table}/{pk}/{sk}
GET /tables/{table}/{pk}
PUT,GET,DELETE /memory/{session_id}/{key}
GET /memory/{session_id}
PUT,GET /blackboard/{run_id}/{key}
GET /blackboard/{run_id}
GET /blackboard/{run_id}/{key}/versions
POST /strategy-locks/{id}/approve
POST /strategy-locks/{id}/reject
POST,GET /kpis/{id}/measurements
GET /kpis/{id}/reading
GET /temperature/{surface_id}/reading
PUT,GET,DELETE /realtime/{room_kind}/{room_id}/members/{user_id}
GET /realtime/{room_kind}/{room_id}/members
POST,GET /sessions
GET,PATCH,DELETE /sessions/{session_id}
POST,GET /sessions/{session_id}/messages
POST,GET /sessions/{session_id}/checkpoints
GET /checkpoints/{checkpoint_id}
POST /checkpoints/{checkpoint_id}/fork
POST,GET /sessions/{session_id}/traces
GET /traces/{trace_id}
PUT,GET,DELETE /agent-memory/{tier}/{key}
GET /agent-memory/{tier}
POST,GET /telemetry/tokens
POST,GET /approvals
GET /approvals/{id}
POST /approvals/{id}/answer
POST,GET /notes
GET,PUT,DELETE /notes/{note_id}
POST /ofrep/v1/evaluate/flags
POST /ofrep/v1/evaluate/flags/{key}
GET,PUT /rate-limits/policy
POST /gates/evaluate
PUT,GET /gates/kill-switch
PUT,GET /gates/config/{surface_id}
POST,GET /analytics/events
POST,OPTIONS /analytics/beacon
GET /analytics/index
POST /analytics/index/rebuild
POST /attribution/tag-link
POST,GET /budget/usage
GET,PUT /budget/policy
GET /budget/summary
POST,GET /budget/reservations
GET /budget/reservations/{reservation_id}
POST /budget/reservations/{reservation_id}/settle
POST /budget/reservations/{reservation_id}/release
GET,HEAD,OPTIONS,POST,PUT,PATCH,DELETE /reserved/{kind}
GET /openapi.json
"""
DEFINITION_CALLS = """
POST,GET /NAME
GET,PUT,DELETE /NAME/{id}
GET /NAME/{id}/versions
GET /NAME/{id}/diff
POST /NAME/{id}/restore
POST /NAME/{id}/copy
"""
DEFINITIONS = """
flows graphs overlays seo pages attribution flags strategy-locks kpis temperature firearms firearms/licences
firearms/grants firearms/bindings
"""

# The beacon has its key in the query.
PUBLIC = ("/health/live", "/health/ready", "/openapi.json", "/analytics/beacon")
# These change no record, or may simply be repeated.
KEYLESS = ("/probe", "/rebuild", "/tag-link", "/beacon")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_every_call_of_the_contract_is_described_and_no_other() -> None:
    contract = {
        (method, path)
        for line in (
            CALLS + "".join(DEFINITION_CALLS.replace("NAME", name) for name in DEFINITIONS.split())
        ).split("\n")
        if line
        for methods, path in [line.split(" ")]
        for method in methods.split(",")
    }
    assert {(method, path) for method, path, _ in operations()} == contract


def test_every_call_says_what_it_is_for_what_it_takes_and_what_it_answers() -> None:
    seen: set[str] = set()
    for method, path, operation in operations():
        assert operation["summary"], (method, path)
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        described = {
            parameter["name"]
            for parameter in operation.get("parameters", ())
            if parameter.get("in") == "path"
        }
        assert described == set(re.findall(r"\{(\w+)\}", path))
        for status, response in operation["responses"].items():
            assert status != "422"
            if int(status) >= 400:
                form = "OFREP-" if path.startswith("/ofrep/") else ""
                assert response == {"$ref": f"#/components/responses/{form}{status}"}
        assert ("security" in operation) == (path in PUBLIC)


def test_every_reference_leads_somewhere_and_every_pattern_is_of_json_schema() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                target: Any = DOCUMENT
                for part in value["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            if isinstance(value.get("pattern"), str):
                assert value["pattern"].startswith("^")
                assert value["pattern"].endswith("$")
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert not isinstance(value, UnsetType)

    check(DOCUMENT)
    assert "\\\\Z" not in json.dumps(DOCUMENT)


def test_changes_take_an_idempotency_key_and_single_records_have_an_etag() -> None:
    for method, path, operation in operations():
        names = {
            parameter["$ref"].rsplit("/", 1)[1]
            for parameter in operation.get("parameters", ())
            if "$ref" in parameter
        }
        takes_key = (
            method != "GET" and not path.endswith(KEYLESS) and not path.startswith(("/reserved", "/ofrep"))
        )
        assert ("Idempotency-Key" in names) == takes_key, (method, path)
        if method in ("PUT", "PATCH") and not path.startswith("/reserved"):
            assert {"If-Match", "If-None-Match"} <= names
            assert "ETag" in operation["responses"]["200"]["headers"]


# --- the fuzz ---

FUZZ_S = 15
# Another seed asks other questions.
FUZZ_SEED_VARIABLE = "ENGINES_FUZZ_SEED"
CHECKS_LEFT_OUT = (
    # A missing route is a 503 that the contract asks for. A 500 is described nowhere, so it fails as such.
    "not_a_server_error",
    # Which surface exists, whose tenant it is, whether a record is there: no schema says it.
    "positive_data_acceptance",
)
# Schemathesis takes `POST /users` to have created what stands below the user. What is to become of a user's
# data in a tenant is a record of its own, which is not there until somebody asks for it.
FUZZ_CONFIGURATION = """
[[operations]]
include-name = "GET /users/{user_id}/erase"
checks.ensure_resource_availability.enabled = false
"""
IDENTITY = {"tenant_id", "mode", "env", "user_id", "surface_id", "app_id", "project_id"}
DATA = (
    r"^/(notes|memory|tables|blackboard|events|streams|ofrep|gates|analytics|attribution|budget|me|health"
    r"|realtime|sessions|checkpoints|traces|agent-memory|telemetry|bootstrap)"
)
CONTROL = r"^/(tenants|users|oses|surfaces|apps|projects|keys|issuers|backends|routes|moves|modes|diagnos)"
# What would take the fuzzer's own rights away, or everybody's.
SELF_DESTRUCTIVE = r"^(PUT|PATCH|DELETE) /(tenants|modes|routes|issuers)"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("fuzz") / "lab")
    try:
        server.start()
        yield server
    finally:
        server.close()


def without_identity(document: dict[str, Any]) -> dict[str, Any]:
    """The description without optional identity: a random one is a 403, and little else would be seen."""
    reduced: dict[str, Any] = json.loads(json.dumps(document))
    kept = ("If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID")
    for item in reduced["paths"].values():
        for operation in item.values():
            operation["parameters"] = [
                parameter
                for parameter in operation.get("parameters", ())
                if parameter.get("name") not in IDENTITY or parameter["in"] == "path"
                if "$ref" not in parameter or parameter["$ref"].endswith(kept)
            ]
    for name in (
        "NoteInput",
        "TableRowInput",
        "MemoryInput",
        "BlackboardInput",
        "RoomMemberInput",
        "SessionInput",
        "SessionPatch",
        "MessageInput",
        "CheckpointInput",
        "ForkInput",
        "TraceInput",
        "AgentMemoryInput",
        "TokensInput",
        "UsageInput",
        "PolicyInput",
        "ReservationInput",
        "SettlementInput",
        "NewEvent",
        "NewStreamEvent",
        "EvaluationInput",
        "NewAnalyticsEvent",
    ):
        properties = reduced["components"]["schemas"][name]["properties"]
        reduced["components"]["schemas"][name]["properties"] = {
            member: schema for member, schema in properties.items() if member not in IDENTITY
        }
    return reduced


def fuzz(lab: LabServer, directory: Path, role: str, document: dict[str, Any], *options: str) -> Counter[int]:
    """Run schemathesis for `FUZZ_S`; it must find nothing. Returns how many requests had which status."""
    path = directory / "openapi.json"
    path.write_text(json.dumps(document))
    configuration = directory / "schemathesis.toml"
    configuration.write_text(FUZZ_CONFIGURATION)
    before = len(lab.output.read_text())
    # The same in every run, so that a run which fails says something of what was changed.
    seed = int(os.environ.get(FUZZ_SEED_VARIABLE, "1"))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={configuration}",
        "run",
        str(path),
        f"--url={lab.url}",
        f"--header=Authorization: Bearer {lab.token(role)}",
        f"--seed={seed}",
        f"--max-time={FUZZ_S}",
        f"--exclude-checks={','.join(CHECKS_LEFT_OUT)}",
        # A beacon's key stands in the query, and a random one is a 401.
        "--exclude-path-regex=/stream$|^/reserved|/beacon$",
        "--phases=fuzzing,stateful",
        "--max-examples=25",
        "--suppress-health-check=all",
        "--warnings=off",
        "--no-color",
        *options,
    ]
    print(f"fuzz as {role}, seed {seed}")
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=FUZZ_S * 3, cwd=directory, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    said = lab.output.read_text()[before:]
    entries = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert not [entry for entry in entries if entry["level"] == "error"]
    return Counter(entry["status"] for entry in entries if entry["event"] == "request")


@pytest.mark.slow
@pytest.mark.property
def test_fuzzing_the_stores_from_the_description_finds_nothing(fuzzed: LabServer, tmp_path: Path) -> None:
    statuses = fuzz(fuzzed, tmp_path, "member", without_identity(DOCUMENT), f"--include-path-regex={DATA}")
    print(statuses)
    assert statuses[200] + statuses[201] > 20, "the fuzz saw next to nothing but refusals"
    assert statuses[500] == 0


@pytest.mark.slow
@pytest.mark.property
def test_fuzzing_with_random_identities_finds_nothing(fuzzed: LabServer, tmp_path: Path) -> None:
    statuses = fuzz(fuzzed, tmp_path, "viewer", DOCUMENT)
    print(statuses)
    assert sum(statuses[refusal] for refusal in (400, 401, 403, 404)) > 20
    assert statuses[500] == 0


@pytest.mark.slow
@pytest.mark.property
def test_fuzzing_the_control_plane_from_the_description_finds_nothing(
    fuzzed: LabServer, tmp_path: Path
) -> None:
    harmless = without_identity(DOCUMENT)
    for path, item in harmless["paths"].items():
        for method in [method for method in item if re.match(SELF_DESTRUCTIVE, f"{method.upper()} {path}")]:
            del item[method]
    statuses = fuzz(fuzzed, tmp_path, "system_admin", harmless, f"--include-path-regex={CONTROL}")
    print(statuses)
    assert statuses[200] + statuses[201] > 20
    assert statuses[500] == 0


@pytest.mark.slow
@pytest.mark.property
def test_fuzzing_what_can_take_everybodys_rights_away_finds_nothing(
    fuzzed: LabServer, tmp_path: Path
) -> None:
    """The last: afterwards nobody may be left who may do anything."""
    statuses = fuzz(
        fuzzed, tmp_path, "system_admin", without_identity(DOCUMENT), f"--include-path-regex={CONTROL}"
    )
    print(statuses)
    assert statuses[500] == 0
