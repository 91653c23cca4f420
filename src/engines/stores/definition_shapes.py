"""The shapes of definitions: what the `json_blob` of each kind must be, and the rules a type cannot say.

Owns the Structs that a blob is checked against. Shapes that draw or describe (flows, graphs, overlays, SEO,
pages) keep members that they do not know, because the tools that write them have their own; shapes that
decide something (contracts, flags, KPIs, temperatures, locks, dangerous capabilities) refuse them. Leaves
which kind has which shape to `stores/definition_schemas.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engines.errors import EnginesError, Invalid
from engines.scope import check_tenant_id
from engines.stores import attribution
from engines.stores.attribution import AttributionContract
from engines.stores.event_records import instant_ms
from engines.stores.flag_rules import Flag, FlagDefinition

BLOB: Final = "json_blob"
ACTIONS_MAX: Final = 100
NAMES_MAX: Final = 200
TENANTS_MAX: Final = 1_000
SLUG_CHARS_MAX: Final = 200
URL_CHARS_MAX: Final = 2_048

Text = Annotated[str, Meta(max_length=500)]
LongText = Annotated[str, Meta(max_length=5_000)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
# An action's name; a trailing * stands for every name that begins so.
Action = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^([A-Za-z0-9._:/-]+\*?|\*)$")]
Actions = Annotated[tuple[Action, ...], Meta(max_length=ACTIONS_MAX)]
Seconds = Annotated[int, Meta(ge=0, le=366 * 24 * 3600)]

_SLUG: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*(?:/[a-z0-9]+(?:-[a-z0-9]+)*)*")


# --- what draws: flows, graphs, overlays ---


class Node(msgspec.Struct, frozen=True):
    """A node; whatever else it has is the drawing tool's own."""

    id: Name


class Edge(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """An edge between two nodes, by `source` and `target`, or by `from` and `to`."""

    source: Name | None = None
    target: Name | None = None
    from_: Name | None = None
    to: Name | None = None


class Drawing(msgspec.Struct, frozen=True):
    """Nodes and edges: a flow or a graph. Two nodes have two ids, and an edge joins nodes that are there."""

    name: Text = ""
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()


def check_drawing(drawing: Drawing) -> None:
    known = {node.id for node in drawing.nodes}
    if len(known) < len(drawing.nodes):
        index = _first_repeat([node.id for node in drawing.nodes])
        raise _refuse("another node has this id", f"nodes[{index}].id")
    for index, edge in enumerate(drawing.edges):
        ends = {"source": edge.source or edge.from_, "target": edge.target or edge.to}
        for name, end in ends.items():
            if end is None:
                raise _refuse("an edge has a source and a target", f"edges[{index}].{name}")
            if end not in known:
                raise _refuse(f"there is no node {end!r}", f"edges[{index}].{name}")


class Overlay(msgspec.Struct, frozen=True):
    """An overlay, or a lens through which one looks; whatever else it has is the surface's own."""

    name: Text = ""
    type: Literal["overlay", "lens"] = "overlay"


# --- what is read by visitors and search engines: SEO, pages ---


class Seo(msgspec.Struct, frozen=True):
    """What a surface tells search engines. Text is text: markup in it is kept as it is, and means nothing."""

    title: Text = ""
    description: LongText = ""
    canonical_url: str | None = None
    robots: Text = ""
    keywords: Annotated[tuple[Name, ...], Meta(max_length=NAMES_MAX)] = ()
    alternates: dict[str, str] = {}
    open_graph: dict[str, str] = {}


def check_seo(seo: Seo) -> None:
    if seo.canonical_url is not None:
        check_url(seo.canonical_url, "canonical_url")
    for language, url in seo.alternates.items():
        check_url(url, f"alternates.{language}")


class Page(msgspec.Struct, frozen=True):
    """A page by its slug. Readers of published pages see the version that was published last."""

    slug: Annotated[str, Meta(min_length=1, max_length=SLUG_CHARS_MAX)]
    title: Text = ""
    status: Literal["draft", "published"] = "draft"
    content: Any = None


def check_page(page: Page) -> None:
    if not _SLUG.fullmatch(page.slug):
        raise _refuse("a slug is a-z, 0-9 and single hyphens, in parts joined by /", "slug")


# --- what decides ---


def check_contract(contract: AttributionContract) -> None:
    try:
        attribution.check_contract(contract)
    except Invalid as refusal:
        refusal.field = f"{BLOB}.{refusal.field}"
        raise


def check_flag(definition: FlagDefinition) -> None:
    """Refuses what its evaluation would not know how to read. The flag's key, its id, matters to no rule."""
    try:
        Flag("", definition)
    except EnginesError as refusal:
        refusal.field = f"{BLOB}.{refusal.field}"
        raise


class Kpi(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measure, how its measurements become one value, and the corridor in which that is well.

    The corridor holds for `actions`, or for all where there are none. `passes_unread`: whether they may
    happen while nothing was measured.
    """

    name: Text = ""
    unit: Text = ""
    aggregation: Literal["last", "sum", "mean", "count"] = "last"
    window_seconds: Annotated[int, Meta(ge=1, le=366 * 24 * 3600)] = 3_600
    floor: float | None = None
    ceiling: float | None = None
    actions: Actions = ()
    passes_unread: bool = False
    description: LongText = ""


def check_kpi(kpi: Kpi) -> None:
    if kpi.floor is not None and kpi.ceiling is not None and kpi.floor > kpi.ceiling:
        raise _refuse("the floor lies above the ceiling", "floor")


class Temperature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of a surface's three settings, a number for each KPI: its floors, its ceilings or its weights."""

    values: Annotated[dict[Name, float], Meta(max_length=NAMES_MAX)]


def check_temperature(setting: Temperature) -> None:
    for name, value in setting.values.items():
        if not math.isfinite(value):
            raise _refuse("a finite number", f"values.{name}")


class StrategyLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be done while it is approved, within its time. `three_wise`: a review must have passed it."""

    title: Text = ""
    allowed_actions: Actions
    constraints: dict[str, Any] = {}
    valid_from: str | None = None
    valid_until: str | None = None
    three_wise: bool = False
    description: LongText = ""


def check_lock(lock: StrategyLock) -> None:
    if not lock.allowed_actions:
        raise _refuse("a lock allows at least one action", "allowed_actions")
    check_period(lock.valid_from, lock.valid_until, "valid_from", "valid_until")


RiskLevel = Literal["low", "medium", "high", "critical"]


class FirearmClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class of dangerous capability, and what using it takes.

    `offered_to`: the tenants that may license themselves for a class of t_system's; `*` is all of them.
    """

    risk_level: RiskLevel
    human_approval: bool = True
    cooldown_seconds: Seconds = 0
    strategy_lock: bool = False
    offered_to: Annotated[tuple[Name, ...], Meta(max_length=TENANTS_MAX)] | Literal["*"] = ()
    description: LongText = ""


def check_class(firearm: FirearmClass) -> None:
    for index, tenant_id in enumerate(firearm.offered_to if firearm.offered_to != "*" else ()):
        check_tenant_id(tenant_id, f"{BLOB}.offered_to[{index}]")


class FirearmLicence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant may use a class; what it says beside that can only ask for more than the class does."""

    class_id: Name
    human_approval: bool | None = None
    cooldown_seconds: Seconds | None = None
    strategy_lock: bool | None = None
    expires_at: str | None = None


def check_licence(licence: FirearmLicence) -> None:
    check_period(None, licence.expires_at, "", "expires_at")


class FirearmGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user or an agent may use a class for which the tenant is licensed, until it expires or is revoked."""

    class_id: Name
    user_id: Name | None = None
    agent_id: Name | None = None
    expires_at: str | None = None
    revoked: bool = False


def check_grant(grant: FirearmGrant) -> None:
    if (grant.user_id is None) is (grant.agent_id is None):
        raise _refuse("a grant is for a user or for an agent", "user_id")
    check_period(None, grant.expires_at, "", "expires_at")


class FirearmBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Actions that are uses of a class."""

    class_id: Name
    actions: Actions


def check_binding(binding: FirearmBinding) -> None:
    if not binding.actions:
        raise _refuse("a binding names at least one action", "actions")


# --- rules that several share ---


def _refuse(sentence: str, field: str) -> Invalid:
    return Invalid(sentence, field=f"{BLOB}.{field}")


def check_url(url: str, field: str) -> None:
    """An absolute http or https URL without credentials. Raises Invalid."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _refuse("this is no URL", field) from None
    ascii_alone = url.isascii() and url.isprintable() and not {" ", "\\", '"', "<", ">"} & set(url)
    if len(url) > URL_CHARS_MAX or not ascii_alone or parts.scheme not in ("http", "https") or not host:
        raise _refuse("an absolute http or https URL, percent-encoded", field)
    if "@" in parts.netloc:
        raise _refuse("a URL holds no credentials", field)


def check_period(begins: str | None, ends: str | None, begin_field: str, end_field: str) -> None:
    begin_ms = None if begins is None else instant_ms(begins, f"{BLOB}.{begin_field}")
    end_ms = None if ends is None else instant_ms(ends, f"{BLOB}.{end_field}")
    if begin_ms is not None and end_ms is not None and end_ms <= begin_ms:
        raise _refuse("it ends before it begins", end_field)


def _first_repeat(names: Sequence[str]) -> int:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            return index
        seen.add(name)
    raise AssertionError("nothing is repeated")
