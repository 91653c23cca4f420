"""Reading definitions of one kind, of one scope, at one place.

Owns how heads, versions and slugs are found, and which of them a list shows. Leaves permission and finding
the place to `stores/definitions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engines.core import versioned
from engines.core.cursor import list_scope
from engines.core.listing import Listed, Window, list_records
from engines.core.place import Place
from engines.core.versioned import VERSION_MAX
from engines.errors import Invalid, NotFound
from engines.ports.documents import GET_KEYS_MAX, Doc
from engines.scope import RequestContext
from engines.stores.definition_records import (
    EVERYTHING,
    OWNERS,
    STORED,
    Definition,
    DefinitionFilter,
    Diff,
    StoredDefinition,
    shown,
)
from engines.stores.definition_schemas import Schema
from engines.stores.definition_writes import key_of, scope_of, slug_key
from engines.stores.json_diff import differences
from engines.stores.scoped import with_etag


class DefinitionView(msgspec.Struct, frozen=True):
    """What a request sees of one kind; `partition` holds all of it, `now` is in epoch seconds."""

    context: RequestContext
    schema: Schema
    place: Place
    partition: str
    now: float

    async def read(self, definition_id: str, version: int | None = None) -> Definition | None:
        """The present version, a tombstone too, or the one asked for; None where there is none."""
        key = self._key(definition_id)
        if version is not None:
            key = versioned.version_key(key, checked_version(version, "version"))
        doc = await self.place.documents.get(self.partition, key)
        return None if doc is None else self.schema.shown(shown(doc), self.now)

    async def list(self, where: DefinitionFilter, window: Window) -> Listed[Definition]:
        """The definitions that `where` lets through, by id; tombstones are none."""
        if where.slug is not None:
            return Listed(await self._of_slug(where), None)
        found: Listed[StoredDefinition] = await self._page(
            ("d", *scope_of(self.context, self.schema)),
            lambda stored: not stored.record.deleted and self._matches(stored, where),
            window,
            selective=where != EVERYTHING,
        )
        if self._wants_published(where):
            return Listed(await self._as_published(found.items), found.after)
        return Listed(tuple(stored.record for stored in found.items), found.after)

    async def versions(self, definition_id: str, window: Window) -> Listed[Definition]:
        """Every version that is kept, tombstones among them, by number. Raises NotFound."""
        found = await self._page(
            versioned.versions_prefix(self._key(definition_id)), lambda _: True, window, selective=False
        )
        if not found.items and window.after is None:
            raise no_such_definition()
        return Listed(tuple(stored.record for stored in found.items), found.after)

    async def diff(self, definition_id: str, from_version: int | None, to_version: int | None) -> Diff:
        """Raises NotFound, Invalid."""
        if to_version is None:
            head = await self.read(definition_id)
            if head is None:
                raise no_such_definition()
            to_version = head.version
        from_version = to_version - 1 if from_version is None else from_version
        keys = [
            versioned.version_key(self._key(definition_id), checked_version(version, field))
            for version, field in ((from_version, "from"), (to_version, "to"))
        ]
        found = await self.place.documents.get_many(self.partition, list(dict.fromkeys(keys)))
        if len(found) < len(set(keys)):
            raise no_such_definition()
        before, after = (STORED.decode(found[key].body).record.json_blob for key in keys)
        return Diff(definition_id, from_version, to_version, await differences(before, after))

    async def _of_slug(self, where: DefinitionFilter) -> tuple[Definition, ...]:
        """At most one: two reads, or three, however many definitions there are."""
        assert where.slug is not None
        documents = self.place.documents
        owner = await documents.get(self.partition, slug_key(self.context, self.schema, where.slug))
        if owner is None:
            return ()
        doc = await documents.get(self.partition, self._key(OWNERS.decode(owner.body).id))
        if doc is None:
            return ()
        stored = self._shown(doc)
        if stored.record.deleted or not self._matches(stored, where):
            return ()
        found = await self._as_published([stored]) if self._wants_published(where) else (stored.record,)
        return tuple(record for record in found if self.schema.slug(record.json_blob) == where.slug)

    async def _page(
        self,
        prefix: tuple[str, ...],
        wanted: Callable[[StoredDefinition], bool],
        window: Window,
        *,
        selective: bool,
    ) -> Listed[StoredDefinition]:
        def read(doc: Doc) -> StoredDefinition | None:
            stored = self._shown(doc)
            return stored if wanted(stored) else None

        return await list_records(
            self.place.documents,
            self.partition,
            prefix,
            read,
            cursors=list_scope(self.schema.kind, self.context.tenant_id, self.context.env, *prefix),
            window=window,
            selective=selective,
        )

    async def _as_published(self, found: Sequence[StoredDefinition]) -> tuple[Definition, ...]:
        """Each as it was last published; a read for a hundred of those that have drafts since."""
        wanted = {
            versioned.version_key(self._key(stored.record.id), stored.published): index
            for index, stored in enumerate(found)
            if stored.published not in (None, stored.record.version)
        }
        records = [stored.record for stored in found]
        keys = list(wanted)
        for start in range(0, len(keys), GET_KEYS_MAX):
            docs = await self.place.documents.get_many(self.partition, keys[start : start + GET_KEYS_MAX])
            for key, doc in docs.items():
                records[wanted[key]] = shown(doc)
        return tuple(records)

    def _shown(self, doc: Doc) -> StoredDefinition:
        stored = STORED.decode(doc.body)
        record = self.schema.shown(with_etag(stored.record, doc.version), self.now)
        return msgspec.structs.replace(stored, record=record)

    def _matches(self, stored: StoredDefinition, where: DefinitionFilter) -> bool:
        record = stored.record
        if self._wants_published(where):
            if stored.published is None:
                return False
        elif where.status not in (None, self.schema.status_of(record)):
            return False
        return where.app_id in (None, record.app_id) and where.user_id in (None, record.user_id)

    def _wants_published(self, where: DefinitionFilter) -> bool:
        return where.status is not None and where.status == self.schema.published_status

    def _key(self, definition_id: str) -> str:
        return key_of(self.context, self.schema, definition_id)


def checked_version(version: int, field: str) -> int:
    """Raises Invalid."""
    if not 1 <= version <= VERSION_MAX:
        raise Invalid(f"a version is a whole number from 1 to {VERSION_MAX}", field=field)
    return version


def no_such_definition() -> NotFound:
    return NotFound("there is no such definition, or that version of it is not kept")
