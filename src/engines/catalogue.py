"""The catalogue of resource kinds: every name under which something may be routed.

Owns canonical names, their aliases and the family of port that serves each. Documentation is generated
from this table. Leaves which kinds are served to the edge that mounts their routers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from engines.errors import Invalid, Reserved

Family = Literal["documents", "log", "definitions", "objects", "vectors", "models", "bus", "reserved"]


class Option(msgspec.Struct, frozen=True):
    """An integer that a route may set for a kind."""

    name: str
    minimum: int
    maximum: int
    default: int
    meaning: str


class Kind(msgspec.Struct, frozen=True):
    """One resource kind. `scope` is what it adds to tenant, mode and env; `served`: its router is mounted.

    `has_streams`: beside documents it holds logs, as the family `log` does.
    """

    name: str
    family: Family
    holds: str
    scope: str = ""
    aliases: tuple[str, ...] = ()
    served: bool = False
    optional: bool = False
    has_streams: bool = False
    options: tuple[Option, ...] = ()


ROUTING_REGISTRY: Final = "routing_registry_store"
CONTROL_PLANE: Final = "control_plane_store"
EVENT_SPINE: Final = "event_spine"
EVENT_STREAM: Final = "event_stream"
TABLES: Final = "tabular_store"
SESSION_MEMORY: Final = "memory_store"
BLACKBOARD: Final = "blackboard_store"
NOTES: Final = "notes_store"
SESSIONS: Final = "session_store"
CHECKPOINTS: Final = "checkpoint_store"
TRACES: Final = "trace_store"
AGENT_MEMORY: Final = "agent_memory_store"
TELEMETRY: Final = "telemetry_store"
ANALYTICS: Final = "analytics_store"
BUDGET: Final = "budget_store"
FLOWS: Final = "flow_store"
GRAPHS: Final = "graph_store"
OVERLAYS: Final = "overlay_store"
SEO: Final = "seo_config_store"
PAGES: Final = "page_content_store"
ATTRIBUTION: Final = "attribution_contracts"
STRATEGY_LOCKS: Final = "strategy_lock_store"
FLAGS: Final = "feature_flags"
KPIS: Final = "kpi_store"
TEMPERATURES: Final = "temperature_store"
FIREARMS: Final = "firearms_store"
RATE_LIMITS: Final = "rate_limit_store"
REALTIME: Final = "realtime_registry"

# A record holds 256 KiB, in which quotes and backslashes count twice. What stands around a value in it (the
# identity with its longest ids, the key, the version, two times) takes less than 2 KiB of that, and 4 KiB are
# left for it. A value with many quotes and backslashes meets the record's limit before this one.
_VALUE_BYTES_MAX: Final = 252 * 1024


def _definitions(name: str, holds: str, scope: str, *aliases: str, has_streams: bool = False) -> Kind:
    kept = Option("versions_kept", 1, 10_000, 1_000, "versions of a definition that stay readable")
    return Kind(
        name,
        "definitions",
        holds,
        scope,
        aliases,
        served=True,
        has_streams=has_streams,
        options=(kept,),
    )


def _kept(name: str, holds: str, noun: str) -> Kind:
    """What a session has several of, of which the newest are kept."""
    kept = Option(f"{noun}_kept", 1, 10_000, 1_000, f"{noun} of a session that are kept, the newest")
    return Kind(name, "documents", holds, "user, session", served=True, options=(kept,))


KINDS: Final = (
    Kind(ROUTING_REGISTRY, "documents", "routes themselves", served=True),
    Kind(
        CONTROL_PLANE,
        "documents",
        "tenants, users, memberships, modes, OSes, surfaces, apps, projects, roles, keys, backends",
        served=True,
    ),
    Kind(EVENT_SPINE, "log", "the one append-only event log of a tenant and env", served=True),
    Kind(EVENT_STREAM, "log", "append and list_after streams", "stream", served=True),
    Kind(TABLES, "documents", "pk/sk JSON: configs and registries", "table", served=True),
    Kind(
        SESSION_MEMORY,
        "documents",
        "session memory; a TTL only when asked",
        "project?, user, session",
        ("memory",),
        served=True,
    ),
    Kind(
        BLACKBOARD,
        "documents",
        "shared state with versioned conditional writes",
        "project?, run",
        served=True,
        options=(
            Option(
                "value_bytes_max",
                1,
                _VALUE_BYTES_MAX,
                _VALUE_BYTES_MAX,
                "bytes of one value, as compact JSON; a record counts quotes and backslashes twice",
            ),
            Option("versions_kept", 1, 10_000, 100, "versions of a key that stay readable"),
        ),
    ),
    Kind(
        NOTES,
        "documents",
        "notes owned by a user, durable until deleted",
        "user, surface, project?",
        ("maybes_store", "maybes"),
        served=True,
    ),
    _definitions(FLOWS, "saved flows", "project?, surface?, app?, user?"),
    _definitions(GRAPHS, "graphs and nodes", "project?, surface?, app?, user?"),
    _definitions(OVERLAYS, "overlays and lenses", "project?, surface?, app?, user?"),
    _definitions(SEO, "SEO configuration", "surface, app?, project?", "seo_store", "seo"),
    _definitions(PAGES, "page content by slug", "surface, project?", "page_content"),
    _definitions(ATTRIBUTION, "utm templates and allowed fields", "project?, platform"),
    _definitions(STRATEGY_LOCKS, "lock snapshots with history", "project?, surface?", "strategy_lock"),
    _definitions(FLAGS, "flags, targeting, evaluation", "surface?, app?"),
    _definitions(KPIS, "definitions, corridors, measurements", "surface", "kpi", has_streams=True),
    _definitions(TEMPERATURES, "floors, ceilings, weights", "surface"),
    _definitions(FIREARMS, "dangerous capabilities and licences", "project?, surface?", "firearms"),
    Kind(
        BUDGET,
        "log",
        "usage ledger and limits",
        "project?, surface?, app?, provider",
        ("budget",),
        served=True,
    ),
    Kind(
        ANALYTICS,
        "log",
        "the index of the spine's analytics events",
        "project, app, surface, platform, session",
        ("metrics_store", "analytics_events"),
        served=True,
    ),
    Kind(
        RATE_LIMITS,
        "documents",
        "durable counters of rate limits",
        "user, surface, key, route",
        ("rate_limit",),
        served=True,
    ),
    Kind("object_store", "objects", "bytes with namespace and metadata", "project", ("raw_storage",)),
    Kind("media_output_store", "objects", "rendered media", "project, run"),
    Kind(
        "vector_store",
        "vectors",
        "vectors: upsert and query",
        "project, namespace",
        ("vector_index",),
        optional=True,
    ),
    Kind("embedder", "models", "text to vectors", "project", optional=True),
    Kind("chat_model", "models", "text generation", "project"),
    Kind("chat_bus", "bus", "live chat with replay", "thread"),
    Kind(REALTIME, "documents", "who may join a thread or canvas", "thread, canvas", served=True),
    Kind(SESSIONS, "documents", "an agent's sessions and their messages", "user, session", served=True),
    _kept(CHECKPOINTS, "states of an agent in a session", "checkpoints"),
    _kept(TRACES, "what an agent's turn did, span by span", "traces"),
    Kind(AGENT_MEMORY, "documents", "what an agent knows beyond a session", "user", served=True),
    Kind(TELEMETRY, "documents", "tokens counted by day, session and model", "user, session", served=True),
    *(
        Kind(name, "reserved", "reserved: every call answers Reserved")
        for name in (
            "pii_vault",
            "nexus",
            "tool_registry",
            "canvas_registry",
            "connector_execution",
        )
    ),
)

_BY_NAME: Final = {name: kind for kind in KINDS for name in (kind.name, *kind.aliases)}
# Of a name that is none, to find the one that was meant.
_COMPARED_CHARS: Final = 64
assert len(_BY_NAME) == sum(1 + len(kind.aliases) for kind in KINDS), "a name stands for one kind"

SERVED: Final = tuple(kind for kind in KINDS if kind.served)
RESERVED: Final = tuple(kind for kind in KINDS if kind.family == "reserved")
RESERVED_DETAIL: Final = "this kind is reserved and not active"


def check_options(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raises Invalid for an option that the kind does not have, or a value outside its bounds."""
    known = {option.name: option for option in kind.options}
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            raise Invalid(f"{kind.name} has no option {name!r}", field=f"options.{name}")
        if type(value) is not int or not option.minimum <= value <= option.maximum:
            raise Invalid(f"an integer from {option.minimum} to {option.maximum}", field=f"options.{name}")


def kind_named(name: str, field: str = "resource_kind") -> Kind:
    """The kind with this name or alias. Raises Invalid, or Reserved for a reserved kind."""
    kind = _BY_NAME.get(name)
    if kind is None:
        near = difflib.get_close_matches(name[:_COMPARED_CHARS], _BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "engines doctor lists them"
        raise Invalid(f"no resource kind has this name; {hint}", field=field)
    if kind.family == "reserved":
        raise Reserved(RESERVED_DETAIL, field=field, resource_kind=kind.name)
    return kind
