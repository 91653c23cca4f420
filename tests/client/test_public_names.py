"""The names that programs import are pinned: one that goes is a break, one that comes is a promise."""

from __future__ import annotations

import msgspec

import engines.client
from engines.client import AsyncEngines

NAMES = """
    AgentMemoryEntry AnalyticsEvent ApiKey App Appended Approval ApprovalAnswer AsyncEngines Backend
    BlackboardEntry BudgetLimit BudgetPolicy BudgetSummary BudgetTotals BudgetVerification Causality
    Checkpoint ContractRef Cost DataSubject Decision Definition DefinitionDiff DefinitionOrigin Difference
    Engines ErasedCounts Erasure Evaluation Evaluations Event GateConfig GateRule Head Hold IndexStatus
    Ingested IngestedEvent Issuer ItemProblem JudgedGate KillSwitch KindState KpiHeat KpiReading LimitStanding
    LockReview Looked Me Measurement Measures Membership MemoryEntry Message Missing Mode ModelTokens Move
    MovePlan MoveProgress NO_RETRY NewAnalyticsEvent NewBudgetPolicy NewEvent NewNote NewTrace NewUsage Note
    NoteSource NoteTimestamps Os Page Price Probe Project RateLimit RateLimitPolicy Reservation Resolution
    ResolvedRoute
    RetryPolicy RoomMember Route RouteScope Session SessionDay SessionOrigin Span Surface SurfaceDefaults
    Switch TableRow TaggedLink TemperatureReading Tenant TokenCounts TokenGroup TokenReport Trace UsageEntry
    User UserIdentity Verification
"""

DEFINITIONS = "copy create delete diff each get page put restore versions"
METHODS = {
    "events": "append each export_page follow get index last page rebuild_index verify",
    "streams": "append each follow page",
    "tables": "delete each get page put",
    "memory": "delete each get page put",
    "blackboard": "each get page put versions",
    "budget": "each each_reservation page policy put_policy record release reservation reservations reserve "
    "settle summary",
    "notes": "create delete each get page replace",
    "ofrep": "evaluate evaluate_all",
    "analytics": "each index ingest page rebuild_index tag_link",
    "flows": DEFINITIONS,
    "graphs": DEFINITIONS,
    "overlays": DEFINITIONS,
    "seo": DEFINITIONS,
    "pages": DEFINITIONS,
    "attribution": DEFINITIONS,
    "flags": DEFINITIONS,
    "strategy_locks": "approve copy create delete diff each get page put reject restore versions",
    "kpis": "copy create delete diff each each_measurement get measure measurements page put reading "
    "restore versions",
    "temperature": "copy create delete diff each get page put reading restore versions",
    "approvals": "answer each get page request",
    "firearms": DEFINITIONS,
    "firearm_licences": DEFINITIONS,
    "firearm_grants": DEFINITIONS,
    "firearm_bindings": DEFINITIONS,
    "gates": "config evaluate kill_switch put_config put_kill_switch",
    "tenants": "create each get page patch",
    "users": "create each erase erasure hold lift_hold page",
    "members": "accept delete get put",
    "keys": "create delete each page",
    "realtime": "delete each get page put",
    "sessions": "create delete each get page patch",
    "messages": "append each page",
    "checkpoints": "each fork get page save",
    "traces": "each get page record",
    "agent_memory": "delete each get page put",
    "telemetry": "count report",
    "modes": "get put",
    "issuers": "delete get put",
    "rate_limits": "get put",
    "oses": "create each get page patch",
    "surfaces": "create each get page patch",
    "apps": "create each get page patch",
    "projects": "create each get page patch",
    "backends": "delete each get page probe put",
    "routes": "delete each history page put resolve",
    "moves": "cancel each get plan retire start",
    "diagnostics": "bootstrap live ready routes",
}


def test_the_public_names_are_these() -> None:
    assert sorted(engines.client.__all__) == sorted(NAMES.split())


def test_every_public_name_is_there() -> None:
    assert all(hasattr(engines.client, name) for name in engines.client.__all__)


def test_the_methods_are_these() -> None:
    client = AsyncEngines("http://localhost:1")
    groups = {name: group for name, group in vars(client).items() if not name.startswith("_")}
    found = {
        name: " ".join(sorted(one for one in dir(group) if not one.startswith("_")))
        for name, group in groups.items()
    }
    assert found == METHODS


def test_every_result_is_a_frozen_value() -> None:
    for name in engines.client.__all__:
        kind = getattr(engines.client, name)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            assert kind.__struct_config__.frozen, name
