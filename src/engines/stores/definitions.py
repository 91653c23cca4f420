"""Definitions: what a tenant configures, as a head and the immutable versions that it had.

Owns all kinds of definition at once: flows, graphs, overlays, SEO, pages, attribution contracts, strategy
locks, flags, KPIs, temperatures, dangerous capabilities. What tells them apart is a line in the table of
`stores/definition_schemas.py`.

A change says which version it follows. Head, version, slug and the message to the spine are one write, so a
reply that is lost half-way leaves all of them or none; of two writers one learns that the version is no
longer the one it named. A deletion is a version too, a tombstone: it hides the definition and frees its slug,
and can be undone. Leaves what a write consists of to `stores/definition_writes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from engines.clock import Clock, timestamp
from engines.core import records
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition
from engines.errors import Conflict, EnginesError, Invalid, PreconditionFailed
from engines.ids import Ids
from engines.scope import RequestContext, check_id
from engines.stores.announcements import Announcements
from engines.stores.definition_reads import DefinitionView, no_such_definition
from engines.stores.definition_records import (
    EVERYTHING,
    STORED,
    Definition,
    DefinitionFilter,
    DefinitionInput,
    Diff,
    Origin,
    shown,
)
from engines.stores.definition_schemas import Schema, checked_blob
from engines.stores.definition_writes import DefinitionWrite, anchor, key_of
from engines.stores.scoped import Change, Deletion, check_body, stamp

# From what stands (its tombstone too, None where nothing ever did) to the next version.
Next = Callable[[Definition | None], Definition]


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
        found = await (await self._view(context, schema)).read(definition_id, version)
        if found is None or (version is None and found.deleted):
            raise no_such_definition()
        return found

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
                raise no_such_definition()
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
        earlier = await (await self._view(context, schema)).read(definition_id, version)

        def restored(former: Definition | None) -> Definition:
            # Refused here, where a repeat was answered already: its first may have pushed that version out.
            if earlier is None:
                raise no_such_definition()
            if earlier.deleted:
                raise Invalid("that version is a deletion", field="version")
            record = self._next(context, schema, definition_id, former, earlier.json_blob, earlier)
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
        source = await (await self._view(context, schema)).read(definition_id, version)
        target_id = definition_id if target_id is None else target_id
        check_definition_id(schema, target_id)

        def copied(former: Definition | None) -> Definition:
            # Refused here, where a repeat was answered already: the source may be gone since its first.
            if source is None or source.deleted:
                raise no_such_definition()
            record = self._next(target, schema, target_id, former, source.json_blob, source)
            origin = Origin(source.id, source.version, context.env, context.surface_id, context.project_id)
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
                raise no_such_definition()
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
        return await (await self._view(context, schema)).list(where, window)

    async def of_slug(self, context: RequestContext, schema: Schema, slug: str) -> Definition | None:
        """What has this slug now, for a store that asked for a permission of its own. Two reads."""
        found = await (await self._view(context, schema)).list(DefinitionFilter(slug=slug), START)
        return found.items[0] if found.items else None

    async def versions(
        self, context: RequestContext, schema: Schema, definition_id: str, *, window: Window = START
    ) -> Listed[Definition]:
        """Every version that is kept, by number, with who wrote it and when. Raises NotFound."""
        context.require_data("definitions.read")
        return await (await self._view(context, schema)).versions(definition_id, window)

    async def diff(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        from_version: int | None = None,
        to_version: int | None = None,
    ) -> Diff:
        """What changed between two versions that are kept: to the present one, from the one before.

        More than about 1 MiB of changes are told as one, which replaces the whole. Raises NotFound.
        """
        context.require_data("definitions.read")
        return await (await self._view(context, schema)).diff(definition_id, from_version, to_version)

    async def _view(self, context: RequestContext, schema: Schema) -> DefinitionView:
        place = await self._places.place(schema.kind, context)
        partition = await place.partition(anchor(context, schema))
        return DefinitionView(context, schema, place, partition, self._clock.now())

    # --- changing ---

    def _next(
        self,
        context: RequestContext,
        schema: Schema,
        definition_id: str,
        former: Definition | None,
        blob: Any,
        source: Definition | None = None,
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
            state=schema.state_of_contents((context.user_id, *context.key_made_by), former, source),
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
        key = key_of(context, schema, definition_id)
        async with self._places.changing(schema.kind, context) as place:
            partition = await place.partition(anchor(context, schema))
            step = DefinitionWrite(context, schema, place, key)
            async with self._announcements.announcing(context, place, partition):
                written = await self._write(step, partition, make, condition, request)
        return Change(shown(written.doc), written.created, written.replayed)

    async def _write(
        self,
        step: DefinitionWrite,
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
            former = None if head is None else STORED.decode(head.body)
            is_live = former is not None and not former.record.deleted
            try:
                condition.check(head if is_live else None)
                record = make(None if former is None else former.record)
            except EnginesError as refusal:
                return await records.replayed_or_raise(refusal, documents, partition, step.key, request)
            draft, wanted = step.draft(record, former, self._announcements)
            if wanted and await documents.get_many(partition, wanted):
                lost = step.taken()
                if await documents.get_many(partition, keys) == found:
                    raise lost
                # Who took the slug since the first read may be this same request, or this definition.
                continue
            try:
                return await records.write(
                    documents, partition, step.key, draft, replaced=head, created=not is_live, request=request
                )
            except Conflict as conflict:
                lost = conflict
        assert lost is not None
        raise lost


def check_definition_id(schema: Schema, definition_id: str) -> str:
    """Raises Invalid for an id that is malformed, or that the kind does not have."""
    check_id(definition_id, "id")
    if schema.ids and definition_id not in schema.ids:
        raise Invalid(f"the ids of {schema.name} are {', '.join(schema.ids)}", field="id")
    return definition_id
