"""Definitions: what a tenant configures, as a head and the immutable versions that it had.

Owns all kinds of definition at once: flows, graphs, overlays, SEO, pages, attribution contracts, strategy
locks, flags, KPIs, temperatures, dangerous capabilities. What tells them apart is a line in the table of
`stores/definition_schemas.py`. Keys are `d!{name}!{surface or -}!{project or -}!{id}`, anchored at what stands
before the id, so that a slug (`u!…!{slug}`) and its head share an atomic write.

A change says which version it follows. Head, version, slug and the message to the spine are one write, so a
reply that is lost half-way leaves all of them or none; of two writers one learns that the version is no
longer the one it named. A deletion is a version too, a tombstone: it hides the definition and frees its slug,
and can be undone. Leaves delivering the message to `stores/announcements.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engines.clock import Clock, timestamp
from engines.codec import Codec, canonical_json
from engines.core import records, versioned
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import NO_PROJECT, join, record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Place, Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.core.versioned import VERSION_MAX
from engines.errors import Conflict, Invalid, NotFound, PreconditionFailed
from engines.ids import Ids
from engines.ports.documents import ABSENT, ALWAYS, Delete, Doc, Op, Put
from engines.scope import RequestContext, check_id
from engines.stores.announcements import Announcements
from engines.stores.definition_schemas import Schema, checked_blob
from engines.stores.json_diff import Difference, differences
from engines.stores.scoped import Change, Deletion, IdentityFields, Stamped, check_body, stamp, with_etag

VERSIONS_KEPT_DEFAULT: Final = 1_000
_NO_SURFACE: Final = "-"


class DefinitionInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST and PUT. `id` is for POST alone: without it the server names the definition."""

    json_blob: Any
    id: str | None = None


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a version was taken from: an earlier one of its own, or another definition."""

    id: str
    version: int
    env: str
    surface_id: str
    project_id: str | None = None


class Definition(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A definition as it is stored and shown, the present version or an earlier one.

    The identity is that of whoever wrote this version. `state` is the server's own part, for kinds that have
    one. Of a tombstone `deleted` is true and `json_blob` null.
    """

    id: str
    json_blob: Any
    version: int
    created_at: str
    created_by: str
    updated_at: str
    deleted: bool = False
    state: dict[str, Any] | None = None
    copied_from: Origin | None = None
    restored_from: int | None = None


class DefinitionFilter(msgspec.Struct, frozen=True):
    """Which definitions to list; None leaves a field open. `status` is a kind's own, as is `slug`."""

    app_id: str | None = None
    user_id: str | None = None
    slug: str | None = None
    status: str | None = None


class Diff(msgspec.Struct, frozen=True, rename={"from_version": "from", "to_version": "to"}):
    """What changed from one version to another; `path` is a JSON Pointer (RFC 6901) into `json_blob`."""

    id: str
    from_version: int
    to_version: int
    changes: tuple[Difference, ...]


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="definition/1", omit_defaults=True):
    """`oldest` is the lowest version that may still be kept, `slug` what the version is found by.

    `published`: the version that readers of published ones see, where the kind has drafts, and its own slug.
    """

    record: Definition
    oldest: int = 1
    slug: str | None = None
    published: int | None = None
    published_slug: str | None = None

    def slugs(self) -> set[str]:
        """Those that the definition holds: a draft keeps the one under which readers find what is published."""
        return {slug for slug in (self.slug, self.published_slug) if slug is not None}


class _SlugOwner(msgspec.Struct, frozen=True, tag_field="schema", tag="slug/1"):
    """Whose a slug is."""

    id: str


# From what stands (None where nothing does) to the next version's contents.
Next = Callable[[Definition | None], Definition]

_CODEC: Final = Codec(_Stored)
_OWNERS: Final = Codec(_SlugOwner)
EVERYTHING: Final = DefinitionFilter()


class Definitions:
    """The definitions of a tenant and env, within the bound surface and project as the kind says.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    PreconditionFailed, IdempotencyKeyReused, TooLarge and OutcomeUnknown.
    """

    def __init__(self, places: Places, announcements: Announcements, ids: Ids, clock: Clock) -> None:
        self._places = places
        self._announcements = announcements
        self._ids = ids
        self._clock = clock

    async def create(
        self,
        context: RequestContext,
        schema: Schema,
        definition: DefinitionInput,
        *,
        request: Request | None = None,
    ) -> Change[Definition]:
        """A new definition, named by its body or by the server. Raises Conflict (the id or slug is taken)."""
        context.require_data(schema.write_permission)
        definition = check_body(context, definition)
        blob = checked_blob(schema, definition.json_blob)
        definition_id = definition.id if definition.id is not None else self._ids.record_id()
        check_definition_id(schema, definition_id)

        def first(former: Definition | None) -> Definition:
            return self._next(context, schema, definition_id, former, blob)

        try:
            return await self._change(
                context, schema, definition_id, first, condition=Condition(absent=True), request=request
            )
        except PreconditionFailed as failed:
            raise Conflict(f"there is a definition {definition_id!r}", field="id") from failed

    async def put(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        definition: DefinitionInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Definition]:
        """The next version. Raises PreconditionRequired (no condition), Conflict (the slug is taken)."""
        context.require_data(schema.write_permission)
        check_definition_id(schema, definition_id)
        condition.required()
        definition = check_body(context, definition)
        if definition.id not in (None, definition_id):
            raise Invalid("the body and the path name different definitions", field="id")
        blob = checked_blob(schema, definition.json_blob)
        return await self._change(
            context,
            schema,
            definition_id,
            lambda former: self._next(context, schema, definition_id, former, blob),
            condition=condition,
            request=request,
        )

    async def get(
        self, context: RequestContext, schema: Schema, definition_id: str, *, version: int | None = None
    ) -> Definition:
        """The present version, or the one asked for while it is kept, a tombstone too. One read.

        Raises NotFound.
        """
        context.require_data("definitions.read")
        stored = await self._read(context, schema, definition_id, version)
        if stored is None or (version is None and stored.deleted):
            raise _no_such_definition()
        return schema.shown(stored, self._clock.now())

    async def delete(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """A tombstone as its next version. Raises NotFound, PreconditionRequired (no condition)."""
        context.require_data(schema.write_permission)
        condition.required()

        def tombstone(former: Definition | None) -> Definition:
            if former is None or former.deleted:
                raise _no_such_definition()
            return msgspec.structs.replace(
                self._next(context, schema, definition_id, former, None), deleted=True, state=former.state
            )

        change = await self._change(
            context, schema, definition_id, tombstone, condition=condition, request=request
        )
        return Deletion(change.replayed)

    async def restore(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        version: int,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Definition]:
        """What an earlier version said, as the next version; also of a definition that was deleted.

        Raises NotFound (no such version), Invalid (a tombstone), Conflict (another took its slug).
        """
        context.require_data(schema.write_permission)
        earlier = await self._read(context, schema, definition_id, version)
        if earlier is None:
            raise _no_such_definition()
        if earlier.deleted:
            raise Invalid("that version is a deletion", field="version")

        def restored(former: Definition | None) -> Definition:
            record = self._next(context, schema, definition_id, former, earlier.json_blob)
            return msgspec.structs.replace(record, restored_from=version)

        return await self._change(
            context, schema, definition_id, restored, condition=condition, request=request
        )

    async def copy(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        target: RequestContext,
        *,
        target_id: str | None = None,
        version: int | None = None,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Definition]:
        """What a version says, as the next version of a definition elsewhere in the tenant.

        `target` is the caller's own context in another env, project or on another surface. `condition` is
        about the target: without one, it must not exist yet. Raises NotFound, Conflict (the target exists).
        """
        context.require_data("definitions.read")
        target.require_data(schema.write_permission)
        assert target.tenant_id == context.tenant_id
        source = await self._read(context, schema, definition_id, version)
        if source is None or source.deleted:
            raise _no_such_definition()
        origin = Origin(source.id, source.version, context.env, context.surface_id, context.project_id)
        target_id = definition_id if target_id is None else target_id
        check_definition_id(schema, target_id)

        def copied(former: Definition | None) -> Definition:
            record = self._next(target, schema, target_id, former, source.json_blob)
            return msgspec.structs.replace(record, copied_from=origin)

        try:
            return await self._change(
                target,
                schema,
                target_id,
                copied,
                condition=Condition(absent=True) if condition == ANYTHING else condition,
                request=request,
            )
        except PreconditionFailed as failed:
            if condition != ANYTHING:
                raise
            raise Conflict(
                "the target exists: say If-Match with its ETag to replace it", field="id"
            ) from failed

    async def change_state(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        change: Callable[[Definition], Mapping[str, Any]],
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Definition]:
        """The next version, which says the same and whose `state` `change` makes of what stands.

        Raises what `change` raises, NotFound.
        """

        def changed(former: Definition | None) -> Definition:
            if former is None or former.deleted:
                raise _no_such_definition()
            record = self._next(context, schema, definition_id, former, former.json_blob)
            return msgspec.structs.replace(record, state=dict(change(former)))

        return await self._change(
            context, schema, definition_id, changed, condition=condition, request=request
        )

    async def list(
        self,
        context: RequestContext,
        schema: Schema,
        where: DefinitionFilter = EVERYTHING,
        *,
        window: Window = START,
    ) -> Listed[Definition]:
        """The definitions that are not deleted, by id. A filtered page may be short and have more behind it.

        With `status` published, of a kind that has drafts, each as it was last published.
        """
        context.require_data("definitions.read")
        place = await self._places.place(schema.kind, context)
        if where.slug is not None:
            return await self._of_slug(context, schema, place, where)
        listed = await self._list(context, schema, place, ("d", *_scope(context, schema)), where, window)
        if where.status != schema.published_status or schema.published_status is None:
            return listed
        partition = await place.partition(_anchor(context, schema))
        items = [await self._as_published(context, schema, place, partition, item) for item in listed.items]
        return Listed(tuple(items), listed.after)

    async def versions(
        self, context: RequestContext, schema: Schema, definition_id: str, *, window: Window = START
    ) -> Listed[Definition]:
        """Every version that is kept, by number, with who wrote it and when. Raises NotFound."""
        context.require_data("definitions.read")
        key = _key(context, schema, definition_id)
        place = await self._places.place(schema.kind, context)
        listed = await self._list(
            context, schema, place, versioned.versions_prefix(key), EVERYTHING, window, tombstones=True
        )
        if not listed.items and window.after is None:
            raise _no_such_definition()
        return listed

    async def diff(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        from_version: int | None = None,
        to_version: int | None = None,
    ) -> Diff:
        """What changed between two versions that are kept: to the present one, from the one before.

        Raises NotFound.
        """
        context.require_data("definitions.read")
        key = _key(context, schema, definition_id)
        place = await self._places.place(schema.kind, context)
        partition = await place.partition(_anchor(context, schema))
        if to_version is None:
            head = await place.documents.get(partition, key)
            if head is None:
                raise _no_such_definition()
            to_version = _CODEC.decode(head.body).record.version
        from_version = to_version - 1 if from_version is None else from_version
        keys = [
            versioned.version_key(key, checked_version(version, field))
            for version, field in ((from_version, "from"), (to_version, "to"))
        ]
        found = await place.documents.get_many(partition, list(dict.fromkeys(keys)))
        if len(found) < len(set(keys)):
            raise _no_such_definition()
        before, after = (_CODEC.decode(found[key].body).record.json_blob for key in keys)
        return Diff(definition_id, from_version, to_version, tuple(differences(before, after)))

    # --- reading ---

    async def _read(
        self, context: RequestContext, schema: Schema, definition_id: str, version: int | None
    ) -> Definition | None:
        key = _key(context, schema, definition_id)
        place = await self._places.place(schema.kind, context)
        partition = await place.partition(_anchor(context, schema))
        if version is not None:
            key = versioned.version_key(key, checked_version(version, "version"))
        doc = await place.documents.get(partition, key)
        return None if doc is None else _shown(doc)

    async def _list(
        self,
        context: RequestContext,
        schema: Schema,
        place: Place,
        prefix: tuple[str, ...],
        where: DefinitionFilter,
        window: Window,
        *,
        tombstones: bool = False,
    ) -> Listed[Definition]:
        now = self._clock.now()

        def read(doc: Doc) -> Definition | None:
            stored = _CODEC.decode(doc.body)
            record = schema.shown(with_etag(stored.record, doc.version), now)
            if tombstones or (not record.deleted and _matches(schema, stored, record, where)):
                return record
            return None

        return await list_records(
            place.documents,
            await place.partition(_anchor(context, schema)),
            prefix,
            read,
            cursors=list_scope(schema.kind, context.tenant_id, context.env, *prefix),
            window=window,
            selective=where != EVERYTHING,
        )

    async def _of_slug(
        self, context: RequestContext, schema: Schema, place: Place, where: DefinitionFilter
    ) -> Listed[Definition]:
        """At most one: two reads, however many definitions there are."""
        assert where.slug is not None
        partition = await place.partition(_anchor(context, schema))
        slug_doc = await place.documents.get(partition, _slug_key(context, schema, where.slug))
        if slug_doc is None:
            return Listed((), None)
        doc = await place.documents.get(partition, _key(context, schema, _OWNERS.decode(slug_doc.body).id))
        if doc is None:
            return Listed((), None)
        stored = _CODEC.decode(doc.body)
        record = schema.shown(with_etag(stored.record, doc.version), self._clock.now())
        if record.deleted or not _matches(schema, stored, record, where):
            return Listed((), None)
        if where.status is not None and where.status == schema.published_status:
            record = await self._as_published(context, schema, place, partition, record)
        elif schema.slug(record.json_blob) != where.slug:
            return Listed((), None)
        return Listed((record,), None)

    async def _as_published(
        self, context: RequestContext, schema: Schema, place: Place, partition: str, record: Definition
    ) -> Definition:
        """The version that was published last, of a definition that has one."""
        if schema.status(record.json_blob) == schema.published_status:
            return record
        key = _key(context, schema, record.id)
        head = await place.documents.get(partition, key)
        published = None if head is None else _CODEC.decode(head.body).published
        doc = (
            None
            if published is None
            else await versioned.read_version(place.documents, partition, key, published)
        )
        return record if doc is None else _shown(doc)

    # --- changing ---

    def _next(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        former: Definition | None,
        blob: Any,
    ) -> Definition:
        now = timestamp(self._clock.now())
        return Definition(
            **stamp(context),
            id=definition_id,
            json_blob=blob,
            version=1 if former is None else former.version + 1,
            created_at=now if former is None else former.created_at,
            created_by=context.user_id if former is None else former.created_by,
            updated_at=now,
            state=schema.first_state(),
        )

    async def _change(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        make: Next,
        *,
        condition: Condition,
        request: Request | None,
    ) -> Change[Definition]:
        """`make` is given the definition that stands, or its tombstone with `deleted`, or None."""
        key = _key(context, schema, definition_id)
        async with self._places.changing(schema.kind, context) as place:
            partition = await place.partition(_anchor(context, schema))
            step = _Step(context, schema, place, key)
            async with self._announcements.announcing(context, place, partition):
                written = await self._write(step, partition, make, condition, request)
        return Change(_shown(written.doc), written.created, written.replayed)

    async def _write(
        self,
        step: _Step,
        partition: str,
        make: Next,
        condition: Condition,
        request: Request | None,
    ) -> records.Written:
        """Like `records.replace`, over a head that may be a tombstone and slugs that may be taken."""
        documents = step.place.documents
        lost: Conflict | None = None
        for _ in range(records.RACES_MAX):
            keys = [step.key] if request is None else [step.key, request.key]
            found = await documents.get_many(partition, keys)
            if request is not None and request.key in found:
                return records.replayed(step.key, found[request.key], request)
            head = found.get(step.key)
            former = None if head is None else _CODEC.decode(head.body)
            is_live = former is not None and not former.record.deleted
            condition.check(head if is_live else None)
            record = make(None if former is None else former.record)
            draft, wanted = step.draft(record, former, self._announcements)
            if wanted and await documents.get_many(partition, wanted):
                raise step.taken()
            try:
                return await records.write(
                    documents, partition, step.key, draft, replaced=head, created=not is_live, request=request
                )
            except Conflict as conflict:
                lost = conflict
        assert lost is not None
        raise lost


class _Step(msgspec.Struct, frozen=True):
    """One change of one definition: what its write consists of."""

    context: RequestContext
    schema: Schema
    place: Place
    key: str

    def draft(
        self, record: Definition, former: _Stored | None, announcements: Announcements
    ) -> tuple[Draft, Sequence[str]]:
        """The write, and the keys of slugs that must be free for it."""
        kept = int(self.place.options.get("versions_kept", VERSIONS_KEPT_DEFAULT))
        oldest = 1 if former is None else former.oldest
        stored = self._stored(
            record, former, versioned.oldest_after(record.version, kept=kept, oldest=oldest)
        )
        held = set() if former is None else former.slugs()
        added = [self._slug_key(slug) for slug in stored.slugs() - held]
        body = _CODEC.encode(stored)
        told = _told(self.schema, record)
        ops: list[Op] = [
            *versioned.version_ops(self.key, body, record.version, kept=kept, oldest=oldest),
            *(Put(key, _OWNERS.encode(_SlugOwner(record.id)), ABSENT) for key in added),
            *(Delete(self._slug_key(slug), ALWAYS) for slug in held - stored.slugs()),
            announcements.message(self.context, self.key, record.version, self.schema.event_type, told),
        ]
        return Draft(body, also=ops), added

    def _stored(self, record: Definition, former: _Stored | None, oldest: int) -> _Stored:
        if record.deleted:
            return _Stored(record, oldest)
        slug = self.schema.slug(record.json_blob)
        if self.schema.published_status is None:
            return _Stored(record, oldest, slug)
        if self.schema.status(record.json_blob) == self.schema.published_status:
            return _Stored(record, oldest, slug, record.version, slug)
        if former is None:
            return _Stored(record, oldest, slug)
        return _Stored(record, oldest, slug, former.published, former.published_slug)

    def taken(self) -> Conflict:
        """The slug is another's."""
        name = self.schema.slug_field
        return Conflict(f"another definition has this {name}", field=f"json_blob.{name}")

    def _slug_key(self, slug: str) -> str:
        return _slug_key(self.context, self.schema, slug)


def check_definition_id(schema: Schema, definition_id: str) -> str:
    """Raises Invalid for an id that is malformed, or that the kind does not have."""
    check_id(definition_id, "id")
    if schema.ids and definition_id not in schema.ids:
        raise Invalid(f"the ids of {schema.name} are {', '.join(schema.ids)}", field="id")
    return definition_id


def checked_version(version: int, field: str) -> int:
    """Raises Invalid."""
    if not 1 <= version <= VERSION_MAX:
        raise Invalid(f"a version is a whole number from 1 to {VERSION_MAX}", field=field)
    return version


def _scope(context: RequestContext, schema: Schema) -> tuple[str, str, str]:
    """What stands in a key before the id: a kind that has no surface or no project is one for all of them."""
    surface_id = context.surface_id if "surface_id" in schema.scope else _NO_SURFACE
    project_id = context.project_id if "project_id" in schema.scope else None
    return schema.name, surface_id, project_id or NO_PROJECT


def _anchor(context: RequestContext, schema: Schema) -> str:
    return join(*_scope(context, schema))


def _key(context: RequestContext, schema: Schema, definition_id: str) -> str:
    check_id(definition_id, "id")
    return record_key("d", *_scope(context, schema), definition_id)


def _slug_key(context: RequestContext, schema: Schema, slug: str) -> str:
    """A slug may be longer than a key and hold any character of a path; its digest stands for it."""
    digest = hashlib.sha256(slug.encode()).hexdigest()[:40]
    return join("u", *_scope(context, schema), digest)


def _matches(schema: Schema, stored: _Stored, record: Definition, where: DefinitionFilter) -> bool:
    if where.status is not None:
        if where.status == schema.published_status:
            if stored.published is None:
                return False
        elif where.status != schema.status_of(record):
            return False
    return where.app_id in (None, record.app_id) and where.user_id in (None, record.user_id)


def _told(schema: Schema, record: Definition) -> dict[str, Any]:
    """What the spine learns of a version: not its contents, which may be large, but their digest."""
    told: dict[str, Any] = {
        "action": _action(record),
        "resource_kind": schema.kind,
        "definition": schema.name,
        "id": record.id,
        "version": record.version,
        "sha256": hashlib.sha256(canonical_json(record.json_blob).encode()).hexdigest(),
    }
    if record.state is not None:
        told["state"] = record.state
    if record.copied_from is not None:
        told["copied_from"] = msgspec.to_builtins(record.copied_from)
    if record.restored_from is not None:
        told["restored_from"] = record.restored_from
    return told


def _action(record: Definition) -> str:
    if record.deleted:
        return "deleted"
    return "created" if record.version == 1 else "changed"


def _shown(doc: Doc) -> Definition:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)


def _no_such_definition() -> NotFound:
    return NotFound("there is no such definition, or that version of it is not kept")
