"""The kinds of definition: a table with one line a kind, and the shape that each asks of its `json_blob`.

Owns the shapes and their rules. Shapes that draw or describe (flows, graphs, overlays, SEO, pages) keep members
that they do not know, because the tools that write them have their own; shapes that decide something
(contracts, flags, KPIs, temperatures, locks, dangerous capabilities) refuse them. Leaves storing to
`stores/definitions.py` and what a decision means to the stores that make it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.codec import check_json_value
from engines.errors import EnginesError, Invalid
from engines.stores.event_records import instant_ms
from engines.stores.flag_rules import Flag, FlagDefinition
from engines.stores.scoped import invalid_body

if TYPE_CHECKING:
    from engines.stores.definitions import Definition

BLOB: Final = "json_blob"
ACTIONS_MAX: Final = 100
NAMES_MAX: Final = 200
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
_HOST: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_UTM: Final = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of definition.

    `name` stands in keys and paths (its `-` may be a `/` there), `kind` is the resource kind, `type` the shape
    of the blob, `check` what a shape cannot say, `scope` which of surface and project tell definitions apart.
    `slug` gives the name that is unique in its scope beside the id; `status` tells drafts from what is
    published; `state` is what the server keeps of its own of a new version, and `state_now` what that is worth
    at a time. `ids` are the only ones there are, where the kind has fixed ones.
    """

    name: str
    kind: str
    type: Any
    holds: str
    path: str = ""
    scope: tuple[str, ...] = ("surface_id", "project_id")
    check: Callable[[Any], None] | None = None
    slug_field: str | None = None
    status_field: str | None = None
    published_status: str | None = None
    state: Mapping[str, Any] | None = None
    state_now: Callable[[Definition, float], Definition] | None = None
    event_type: str = "audit"
    write_permission: str = "definitions.write"
    ids: tuple[str, ...] = ()

    @property
    def base_path(self) -> str:
        return f"/{self.path or self.name}"

    def slug(self, blob: Any) -> str | None:
        """The slug of a checked blob; None where the kind has none."""
        return None if self.slug_field is None else str(blob[self.slug_field])

    def status(self, blob: Any) -> str | None:
        """The status that a checked blob gives itself; None where the kind has none."""
        return None if self.status_field is None or blob is None else blob.get(self.status_field, "draft")

    def status_of(self, record: Definition) -> str | None:
        """The status of a definition, the server's or its own."""
        if record.state is not None:
            return str(record.state["status"])
        return self.status(record.json_blob)

    def first_state(self) -> dict[str, Any] | None:
        return None if self.state is None else dict(self.state)

    def shown(self, record: Definition, now: float) -> Definition:
        """The definition as it is worth something at `now`, in epoch seconds."""
        return record if self.state_now is None else self.state_now(record, now)


def checked_blob(schema: Schema, blob: Any) -> Any:
    """The blob, which is a JSON object of the kind's shape. Raises Invalid with the `field` inside it."""
    if type(blob) is not dict:
        raise Invalid("a definition is a JSON object", field=BLOB)
    check_json_value(blob, BLOB)
    try:
        shaped = msgspec.convert(blob, schema.type)
    except msgspec.ValidationError as error:
        refusal = invalid_body(error)
        refusal.field = f"{BLOB}.{refusal.field}" if refusal.field else BLOB
        raise refusal from None
    if schema.check is not None:
        schema.check(shaped)
    return blob


def _refuse(sentence: str, field: str) -> Invalid:
    return Invalid(sentence, field=f"{BLOB}.{field}")


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


def _check_drawing(drawing: Drawing) -> None:
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


def _check_seo(seo: Seo) -> None:
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


def _check_page(page: Page) -> None:
    if not _SLUG.fullmatch(page.slug):
        raise _refuse("a slug is a-z, 0-9 and single hyphens, in parts joined by /", "slug")


# --- what decides ---


class AttributionContract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What events and links of a platform may say of where a visitor came from.

    `utm_template` gives each utm field a fixed value, or a pattern with `{name}` for what the caller says.
    `allowed_hosts`: where a tagged link may lead; `*.` before a host stands for all below it.
    """

    platform: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    utm_template: dict[str, Text] = {}
    allowed_fields: Annotated[tuple[Name, ...], Meta(max_length=NAMES_MAX)] = ()
    allowed_hosts: Annotated[tuple[Text, ...], Meta(max_length=NAMES_MAX)] = ()
    description: LongText = ""


def _check_contract(contract: AttributionContract) -> None:
    for name, template in contract.utm_template.items():
        if name not in _UTM:
            raise _refuse(f"the fields of a template are {', '.join(_UTM)}", f"utm_template.{name}")
        if not re.fullmatch(r"(?:[^{}]|\{[a-z][a-z0-9_]{0,63}\})*", template):
            raise _refuse("a placeholder is a name in braces, such as {campaign}", f"utm_template.{name}")
    for index, host in enumerate(contract.allowed_hosts):
        if len(host) > 253 or not _HOST.fullmatch(host.removeprefix("*.")):
            raise _refuse("a host is a name in lower case, without scheme or port", f"allowed_hosts[{index}]")


def _check_flag(definition: FlagDefinition) -> None:
    """A flag that can be evaluated: what is refused is what its evaluation would not know how to read."""
    try:
        Flag("", definition)
    except EnginesError as refusal:
        refusal.field = f"{BLOB}.{refusal.field}"
        raise


class Kpi(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measure, how its measurements become one value, and the corridor in which that is well."""

    name: Text = ""
    unit: Text = ""
    aggregation: Literal["last", "sum", "mean", "count"] = "last"
    window_seconds: Annotated[int, Meta(ge=1, le=366 * 24 * 3600)] = 3_600
    floor: float | None = None
    ceiling: float | None = None
    description: LongText = ""


def _check_kpi(kpi: Kpi) -> None:
    if kpi.floor is not None and kpi.ceiling is not None and kpi.floor > kpi.ceiling:
        raise _refuse("the floor lies above the ceiling", "floor")


class Temperature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of a surface's three settings, a number for each KPI: its floors, its ceilings or its weights."""

    values: Annotated[dict[Name, float], Meta(max_length=NAMES_MAX)]


def _check_temperature(setting: Temperature) -> None:
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


def _check_lock(lock: StrategyLock) -> None:
    if not lock.allowed_actions:
        raise _refuse("a lock allows at least one action", "allowed_actions")
    _check_period(lock.valid_from, lock.valid_until, "valid_from", "valid_until")


def _lock_now(record: Definition, now: float) -> Definition:
    """Approved until its time has passed; from then on expired."""
    until = None if record.json_blob is None else record.json_blob.get("valid_until")
    state = record.state
    if state is None or until is None or state["status"] != "approved":
        return record
    if instant_ms(until, "valid_until") > now * 1_000:
        return record
    return msgspec.structs.replace(record, state={**state, "status": "expired"})


RiskLevel = Literal["low", "medium", "high", "critical"]


class FirearmClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class of dangerous capability, and what using it takes."""

    risk_level: RiskLevel
    human_approval: bool = True
    cooldown_seconds: Seconds = 0
    strategy_lock: bool = False
    description: LongText = ""


class FirearmLicence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant may use a class; what it says beside that goes before the class's own."""

    class_id: Name
    human_approval: bool | None = None
    cooldown_seconds: Seconds | None = None
    strategy_lock: bool | None = None
    expires_at: str | None = None


def _check_licence(licence: FirearmLicence) -> None:
    _check_period(None, licence.expires_at, "", "expires_at")


class FirearmGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user or an agent may use a class for which the tenant is licensed, until it expires or is revoked."""

    class_id: Name
    user_id: Name | None = None
    agent_id: Name | None = None
    expires_at: str | None = None
    revoked: bool = False


def _check_grant(grant: FirearmGrant) -> None:
    if (grant.user_id is None) is (grant.agent_id is None):
        raise _refuse("a grant is for a user or for an agent", "user_id")
    _check_period(None, grant.expires_at, "", "expires_at")


class FirearmBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Actions that are uses of a class."""

    class_id: Name
    actions: Actions


def _check_binding(binding: FirearmBinding) -> None:
    if not binding.actions:
        raise _refuse("a binding names at least one action", "actions")


# --- rules that several share ---


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


def _check_period(begins: str | None, ends: str | None, begin_field: str, end_field: str) -> None:
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


# --- the table ---

SCHEMAS: Final = (
    Schema(
        name="flows",
        kind=catalogue.FLOWS,
        type=Drawing,
        check=_check_drawing,
        holds="saved flows: nodes and edges",
    ),
    Schema(
        name="graphs",
        kind=catalogue.GRAPHS,
        type=Drawing,
        check=_check_drawing,
        holds="graphs: nodes and edges",
    ),
    Schema(name="overlays", kind=catalogue.OVERLAYS, type=Overlay, holds="overlays and lenses"),
    Schema(name="seo", kind=catalogue.SEO, type=Seo, check=_check_seo, holds="SEO configuration"),
    Schema(
        name="pages",
        kind=catalogue.PAGES,
        type=Page,
        check=_check_page,
        slug_field="slug",
        status_field="status",
        published_status="published",
        holds="pages by slug, draft and published",
    ),
    Schema(
        name="attribution",
        kind=catalogue.ATTRIBUTION,
        type=AttributionContract,
        check=_check_contract,
        slug_field="platform",
        scope=("project_id",),
        holds="attribution contracts, one a platform",
    ),
    Schema(
        name="flags",
        kind=catalogue.FLAGS,
        type=FlagDefinition,
        check=_check_flag,
        scope=("surface_id",),
        holds="feature flags, by key",
    ),
    Schema(
        name="strategy-locks",
        kind=catalogue.STRATEGY_LOCKS,
        type=StrategyLock,
        check=_check_lock,
        state={"status": "draft"},
        state_now=_lock_now,
        event_type="strategy_lock",
        holds="strategy locks and their decisions",
    ),
    Schema(
        name="kpis",
        kind=catalogue.KPIS,
        type=Kpi,
        check=_check_kpi,
        scope=("surface_id",),
        holds="KPIs and their corridors",
    ),
    Schema(
        name="temperature",
        kind=catalogue.TEMPERATURES,
        type=Temperature,
        check=_check_temperature,
        scope=("surface_id",),
        ids=("floors", "ceilings", "weights"),
        holds="a surface's floors, ceilings and weights",
    ),
    Schema(
        name="firearms",
        kind=catalogue.FIREARMS,
        type=FirearmClass,
        scope=(),
        write_permission="firearms.write",
        holds="classes of dangerous capability",
    ),
    Schema(
        name="firearms-licences",
        path="firearms/licences",
        kind=catalogue.FIREARMS,
        type=FirearmLicence,
        check=_check_licence,
        scope=(),
        write_permission="firearms.write",
        holds="for which classes the tenant is licensed",
    ),
    Schema(
        name="firearms-grants",
        path="firearms/grants",
        kind=catalogue.FIREARMS,
        type=FirearmGrant,
        check=_check_grant,
        scope=(),
        write_permission="firearms.write",
        holds="who may use a class",
    ),
    Schema(
        name="firearms-bindings",
        path="firearms/bindings",
        kind=catalogue.FIREARMS,
        type=FirearmBinding,
        check=_check_binding,
        scope=(),
        write_permission="firearms.write",
        holds="which actions are uses of a class",
    ),
)

SCHEMA_NAMED: Final = {schema.name: schema for schema in SCHEMAS}
