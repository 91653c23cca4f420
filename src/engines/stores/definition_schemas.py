"""The kinds of definition: a table with one line a kind.

Owns what a kind is: names, scope, what of it is unique, who may write it, and what the server keeps of its
own. Leaves the shapes of blobs to `stores/definition_shapes.py`, storing to `stores/definitions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from engines import catalogue
from engines.codec import check_json_value
from engines.errors import Invalid
from engines.stores import definition_shapes as shapes
from engines.stores.attribution import AttributionContract
from engines.stores.definition_records import Definition
from engines.stores.definition_shapes import BLOB
from engines.stores.erasing import ERASED
from engines.stores.event_records import instant_ms
from engines.stores.flag_rules import FlagDefinition
from engines.stores.scoped import invalid_body

# From who writes, what stood before and what the contents were taken from, to the state of the new version.
NextState = Callable[[Collection[str], Definition | None, Definition | None], dict[str, Any]]


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of definition.

    `name` stands in keys, and in paths unless `path` does; `kind` is the resource kind, `type` the shape of a
    blob, `check` what a shape cannot say, `scope` which of surface and project tell definitions apart. The
    member `slug_field` is unique in its scope beside the id; `status_field` tells drafts from what is
    published. `next_state` makes what the server keeps of its own of new contents, `state_now` says what
    that is worth at a time. `ids` are the only ones there are, where the kind has fixed ones.
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
    next_state: NextState | None = None
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

    def state_of_contents(
        self, writers: Collection[str], former: Definition | None, source: Definition | None
    ) -> dict[str, Any] | None:
        """The state of contents that are written over `former`, taken from `source` if from anywhere.

        `writers`: the user, and who made the key that they write with.
        """
        return None if self.next_state is None else self.next_state(writers, former, source)

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


def _drafted(
    writers: Collection[str], former: Definition | None, source: Definition | None
) -> dict[str, Any]:
    """A draft, and everybody whose contents it may hold: none of them may decide about it.

    Since the last decision all who wrote a draft, because each may have left the others' words standing; and
    of a version that was restored or copied, those who proposed that. Somebody who was erased may have come
    back under any name, so nobody decides about what they proposed until somebody else says it all anew.
    """
    proposers = set(writers)
    for version in (former if former is not None and _is_draft(former) else None, source):
        if version is not None and version.state is not None:
            proposers |= set(version.state["proposed_by"])
    if source is None:
        proposers.discard(ERASED)
    return {"status": "draft", "proposed_by": sorted(proposers)}


def _is_draft(record: Definition) -> bool:
    return record.state is not None and record.state["status"] == "draft"


def _lock_now(record: Definition, now: float) -> Definition:
    """Approved until its time has passed; from then on expired."""
    until = None if record.json_blob is None else record.json_blob.get("valid_until")
    state = record.state
    if state is None or until is None or state["status"] != "approved":
        return record
    if instant_ms(until, "valid_until") > now * 1_000:
        return record
    return msgspec.structs.replace(record, state={**state, "status": "expired"})


# --- the table ---

SCHEMAS: Final = (
    Schema(
        name="flows",
        kind=catalogue.FLOWS,
        type=shapes.Drawing,
        check=shapes.check_drawing,
        holds="saved flows: nodes and edges",
    ),
    Schema(
        name="graphs",
        kind=catalogue.GRAPHS,
        type=shapes.Drawing,
        check=shapes.check_drawing,
        holds="graphs: nodes and edges",
    ),
    Schema(name="overlays", kind=catalogue.OVERLAYS, type=shapes.Overlay, holds="overlays and lenses"),
    Schema(
        name="seo", kind=catalogue.SEO, type=shapes.Seo, check=shapes.check_seo, holds="SEO configuration"
    ),
    Schema(
        name="pages",
        kind=catalogue.PAGES,
        type=shapes.Page,
        check=shapes.check_page,
        slug_field="slug",
        status_field="status",
        published_status="published",
        holds="pages by slug, draft and published",
    ),
    Schema(
        name="attribution",
        kind=catalogue.ATTRIBUTION,
        type=AttributionContract,
        check=shapes.check_contract,
        slug_field="platform",
        scope=("project_id",),
        holds="attribution contracts, one a platform",
    ),
    Schema(
        name="flags",
        kind=catalogue.FLAGS,
        type=FlagDefinition,
        check=shapes.check_flag,
        scope=("surface_id",),
        holds="feature flags, by key",
    ),
    Schema(
        name="strategy-locks",
        kind=catalogue.STRATEGY_LOCKS,
        type=shapes.StrategyLock,
        check=shapes.check_lock,
        next_state=_drafted,
        state_now=_lock_now,
        event_type="strategy_lock",
        holds="strategy locks and their decisions",
    ),
    Schema(
        name="kpis",
        kind=catalogue.KPIS,
        type=shapes.Kpi,
        check=shapes.check_kpi,
        scope=("surface_id",),
        write_permission="kpis.define",
        holds="KPIs and their corridors",
    ),
    Schema(
        name="temperature",
        kind=catalogue.TEMPERATURES,
        type=shapes.Temperature,
        check=shapes.check_temperature,
        scope=("surface_id",),
        ids=("floors", "ceilings", "weights"),
        write_permission="kpis.define",
        holds="a surface's floors, ceilings and weights",
    ),
    Schema(
        name="firearms",
        kind=catalogue.FIREARMS,
        type=shapes.FirearmClass,
        check=shapes.check_class,
        scope=(),
        write_permission="firearms.write",
        holds="classes of dangerous capability",
    ),
    Schema(
        name="firearms-licences",
        path="firearms/licences",
        kind=catalogue.FIREARMS,
        type=shapes.FirearmLicence,
        check=shapes.check_licence,
        scope=(),
        write_permission="firearms.write",
        holds="for which classes the tenant is licensed",
    ),
    Schema(
        name="firearms-grants",
        path="firearms/grants",
        kind=catalogue.FIREARMS,
        type=shapes.FirearmGrant,
        check=shapes.check_grant,
        scope=(),
        write_permission="firearms.write",
        holds="who may use a class",
    ),
    Schema(
        name="firearms-bindings",
        path="firearms/bindings",
        kind=catalogue.FIREARMS,
        type=shapes.FirearmBinding,
        check=shapes.check_binding,
        scope=(),
        write_permission="firearms.write",
        holds="which actions are uses of a class",
    ),
)

SCHEMA_NAMED: Final = {schema.name: schema for schema in SCHEMAS}
