"""What calls take and give: one Struct a record, as the HTTP contract writes it.

Owns names and types. A member that a newer server adds is passed over; one that a record may lack is None.
`etag` is the ETag header's value, quotes included: hand it back as `if_match` unchanged.

Bases are used where the JSON of several records has the same members side by side.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

Source = Literal["ui", "agent", "connector", "tool"]
ContentType = Literal["markdown", "text", "json"]


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list. `after` goes on from its end.

    None, and only None, means that there is nothing more.
    """

    items: tuple[T, ...]
    after: str | None = None


class Stamped(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and provenance that the server stamped on a record."""

    tenant_id: str
    mode: str = ""
    env: str = ""
    user_id: str = ""
    surface_id: str = ""
    app_id: str | None = None
    project_id: str | None = None
    run_id: str = ""
    step_id: str = ""
    thread_id: str | None = None
    etag: str = ""


# --- flags ---


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a flag says. Without a `value` (msgspec.UNSET) the program uses a default of its own.

    Among several, one that could not be evaluated has `error_code` and `error_details` instead.
    """

    key: str
    reason: str = "ERROR"
    variant: str | None = None
    value: Any = msgspec.UNSET
    metadata: dict[str, Any] = {}
    error_code: str | None = None
    error_details: str | None = None


class Evaluations(msgspec.Struct, frozen=True):
    """What every flag says, by key. `etag` stands for all of it."""

    flags: tuple[Evaluation, ...]
    etag: str = ""


# --- events ---


class Causality(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an event belongs in a trace."""

    trace_id: str | None = None
    span_id: str | None = None


class NewEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event to append. What is None comes from the request's context, or stays absent.

    `event_id`: a UUID of the caller's own, of any version but 8, under which a repeat is recognised; at most
    98 events of one request may have one. `occurred_at`: RFC 3339, the caller's own time.
    """

    event_type: str
    payload: dict[str, Any]
    event_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    parent_event_id: str | None = None
    thread_id: str | None = None
    source: Source | None = None
    occurred_at: str | None = None
    causality: Causality | None = None


class Appended(msgspec.Struct, frozen=True):
    """Where an event stands: positions start at 1 and have no gaps."""

    event_id: str
    position: int
    cursor: str


class AppendedEvents(msgspec.Struct, frozen=True):
    """The answer to an append, in the order of the request."""

    events: tuple[Appended, ...]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the spine or of a stream. `payload` is None once the event was redacted."""

    event_id: str
    position: int
    cursor: str
    tenant_id: str = ""
    mode: str = ""
    env: str = ""
    user_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    run_id: str = ""
    step_id: str = ""
    parent_event_id: str | None = None
    thread_id: str | None = None
    timestamp: str = ""
    occurred_at: str | None = None
    event_type: str = ""
    source: str = ""
    payload: dict[str, Any] | None = None
    route: str = ""
    causality: Causality | None = None


class Head(msgspec.Struct, frozen=True):
    """The end of a log. Kept elsewhere, it shows a truncation or a rewrite to `verify`."""

    position: int
    digest: str


class IndexStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far the spine's index has come. `lag`: events behind it, `block` at a time become part of it."""

    position: int
    head: int
    lag: int
    block: int = 0


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What reading a whole log and its digests found; `head` is where it holds up to.

    Where `ok` is false, `bad_position` and `reason` say where it breaks first.
    """

    ok: bool
    head: Head
    event_count: int = 0
    redacted_count: int = 0
    bad_position: int | None = None
    reason: str | None = None


# --- analytics ---


class NewAnalyticsEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An analytics event to be taken in. What is None comes from the request's context, or stays absent.

    `event_type`: its own type, such as `page_view`. `event_id`: a UUID of the caller's own, of any version
    but 8, under which a repeat is recognised.
    """

    event_type: str | None = None
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    event_id: str | None = None
    platform: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    thread_id: str | None = None
    source: Source | None = None
    occurred_at: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    page_url: str | None = None
    page_title: str | None = None
    referrer: str | None = None


class ItemProblem(msgspec.Struct, frozen=True):
    """Why one event of several was not taken in."""

    code: str
    detail: str
    field: str | None = None


class IngestedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one event. `status` is 201 where it stands on the spine, else its problem's."""

    status: int
    event_id: str | None = None
    position: int | None = None
    cursor: str | None = None
    gate_status: str | None = None
    problem: ItemProblem | None = None


class Ingested(msgspec.Struct, frozen=True):
    """The results in the order of the request."""

    events: tuple[IngestedEvent, ...]
    accepted: int
    refused: int


class ContractRef(msgspec.Struct, frozen=True):
    """An attribution contract, at one of its versions."""

    id: str
    version: int


class AnalyticsEvent(Event, frozen=True, kw_only=True):
    """An analytics event. `contract`: the one that it was validated against; `gate_status`: what the gates
    said of it, None where none were asked."""

    platform: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    page_url: str | None = None
    page_title: str | None = None
    referrer: str | None = None
    contract: ContractRef | None = None
    gate_status: str | None = None
    gate: str | None = None
    gate_reason_code: str | None = None
    gate_error: str | None = None


class TaggedLink(msgspec.Struct, frozen=True):
    """A link with the parameters that the platform's attribution contract says."""

    url: str
    platform: str
    utm: dict[str, str]
    contract: ContractRef


# --- records ---


class TableRow(Stamped, frozen=True, kw_only=True):
    """One row of a table, by partition key and sort key."""

    table: str
    pk: str
    sk: str
    value: Any
    created_at: str = ""
    updated_at: str = ""


class MemoryEntry(Stamped, frozen=True, kw_only=True):
    """One entry of a session's memory; `expires_at` only where a time to live was asked for."""

    session_id: str
    key: str
    value: Any
    created_at: str = ""
    updated_at: str = ""
    expires_at: str | None = None


class BlackboardEntry(Stamped, frozen=True, kw_only=True):
    """One entry of a run's blackboard, at one of its versions (from 1)."""

    key: str
    value: Any
    version: int
    created_at: str = ""
    updated_at: str = ""


class RoomMember(Stamped, frozen=True, kw_only=True):
    """Who may join a room, and as what; `expires_at` only where the membership lapses."""

    room_kind: Literal["thread", "canvas"]
    room_id: str
    role: Literal["host", "writer", "reader"]
    created_by: str = ""
    created_at: str = ""
    updated_by: str = ""
    updated_at: str = ""
    expires_at: str | None = None


class DefinitionOrigin(msgspec.Struct, frozen=True):
    """The definition that another was copied from."""

    id: str
    version: int
    env: str = ""
    surface_id: str = ""
    project_id: str | None = None


class Definition(Stamped, frozen=True, kw_only=True):
    """A flow, a flag or another definition, at one of its versions (from 1).

    `state` is the server's own part, for kinds that have one, such as a strategy lock's decision.
    """

    id: str
    json_blob: Any
    version: int
    created_at: str = ""
    created_by: str = ""
    updated_at: str = ""
    deleted: bool = False
    state: dict[str, Any] | None = None
    copied_from: DefinitionOrigin | None = None
    restored_from: int | None = None


class Difference(msgspec.Struct, frozen=True):
    """One change; `path` is a JSON Pointer into `json_blob`."""

    op: Literal["add", "remove", "replace"]
    path: str
    before: Any = None
    after: Any = None


class DefinitionDiff(msgspec.Struct, frozen=True, rename={"from_version": "from", "to_version": "to"}):
    """What changed from one version to another."""

    id: str
    from_version: int
    to_version: int
    changes: tuple[Difference, ...]


class LockReview(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The verdict of a review of a strategy lock, as whoever decides reports it."""

    verdict: Literal["pass", "fail"]
    reviewers: tuple[str, ...]
    note: str = ""


class ApprovalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a person answered to a request for approval."""

    answer: Literal["yes", "no"]
    answered_by: str = ""
    answered_at: str = ""
    note: str = ""


class Approval(Stamped, frozen=True, kw_only=True):
    """A request for approval of one use of something dangerous, and its answer."""

    approval_id: str
    action: str
    class_id: str
    subject: str
    status: Literal["pending", "granted", "refused", "used", "expired"]
    version: int
    reason: str = ""
    context: dict[str, Any] = {}
    requested_by: str = ""
    key_made_by: tuple[str, ...] = ()
    created_at: str = ""
    updated_at: str = ""
    expires_at: str = ""
    answer: ApprovalAnswer | None = None
    use_id: str | None = None


class Measurement(Stamped, frozen=True, kw_only=True):
    """A measurement of a KPI. `value` is None once its text was removed for ever."""

    measurement_id: str
    kpi_id: str
    value: float | None
    position: int
    cursor: str
    occurred_at: str | None = None
    labels: dict[str, str] = {}
    recorded_at: str = ""


class KpiReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a KPI says of its window. `value` is None, and `status` `no_data`, where nothing was measured.

    The measurements are those from `first_position` to `last_position`, `count` of them.
    """

    kpi_id: str
    value: float | None
    status: Literal["below", "within", "above", "no_data"]
    surface_id: str = ""
    version: int = 0
    aggregation: Literal["last", "sum", "mean", "count"] = "last"
    unit: str = ""
    floor: float | None = None
    ceiling: float | None = None
    window_seconds: int = 0
    since: str = ""
    until: str = ""
    count: int = 0
    first_position: int | None = None
    last_position: int | None = None


class KpiHeat(msgspec.Struct, frozen=True, kw_only=True):
    """One KPI's part of a temperature; `heat` is from 0 to 1, None where anything is missing."""

    kpi_id: str
    weight: float
    floor: float | None = None
    ceiling: float | None = None
    reading: KpiReading | None = None
    heat: float | None = None


class Missing(msgspec.Struct, frozen=True):
    """What a temperature lacks: `floor`, `ceiling`, `range`, `reading`, `kpi`, `weight` or `weights`."""

    what: str
    kpi_id: str | None = None


class TemperatureReading(msgspec.Struct, frozen=True, kw_only=True):
    """A surface's temperature, from 0 to 1; None where `missing` is not empty."""

    surface_id: str
    temperature: float | None
    at: str = ""
    kpis: tuple[KpiHeat, ...] = ()
    missing: tuple[Missing, ...] = ()


class NoteSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who made a note."""

    created_by: Literal["user", "agent"] | None = None
    agent_id: str | None = None
    run_id: str | None = None


class NoteTimestamps(msgspec.Struct, frozen=True):
    """RFC 3339 in UTC, from the server's clock."""

    created_at: str
    updated_at: str


class NewNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contents of a note. `content` is text, or any JSON where `content_type` is `json`."""

    content: Any
    title: str | None = None
    content_type: ContentType | None = None
    tags: tuple[str, ...] | None = None
    source: NoteSource | None = None


class Note(Stamped, frozen=True, kw_only=True):
    """A note; it belongs to its user."""

    note_id: str
    title: str = ""
    content: Any = None
    content_type: ContentType = "markdown"
    tags: tuple[str, ...] = ()
    source: NoteSource = NoteSource()
    timestamps: NoteTimestamps | None = None
