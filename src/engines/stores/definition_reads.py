"""Reading definitions of one kind, of one scope, at one place.

Owns how heads, versions and slugs are found, and which of them a list shows. Leaves permission and finding
the place to `stores/definitions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from engines.codec import encode_json
from engines.core import versioned
from engines.core.cursor import Cursors, list_scope
from engines.core.keys import within
from engines.core.listing import Listed, Window, list_records
from engines.core.place import Place
from engines.core.records import RACES_MAX
from engines.core.versioned import VERSION_MAX
from engines.errors import Invalid, NotFound
from engines.ports.documents import PAGE_BYTES, Doc
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

# Up to 6 MiB are read at once, of which a page shows about 1.
_PUBLISHED_AT_ONCE: Final = 16


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
        prefix = ("d", *scope_of(self.context, self.schema))
        found: Listed[StoredDefinition] = await self._page(
            prefix,
            lambda stored: not stored.record.deleted and self._matches(stored, where),
            window,
            selective=where != EVERYTHING,
        )
        if self._wants_published(where):
            return await self._published_page(prefix, found, where)
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
        found = [stored.record]
        if self._wants_published(where):
            found = list((await self._as_published([stored], where)).values())
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
            cursors=self._cursors(prefix),
            window=window,
            selective=selective,
        )

    async def _published_page(
        self, prefix: tuple[str, ...], found: Listed[StoredDefinition], where: DefinitionFilter
    ) -> Listed[Definition]:
        """As much of `found`, each as it was last published, as makes a page; a read for sixteen of them.

        What is published may be far longer than the drafts by which `found` was measured.
        """
        records: list[Definition] = []
        size = 0
        last = ""
        for start in range(0, len(found.items), _PUBLISHED_AT_ONCE):
            some = found.items[start : start + _PUBLISHED_AT_ONCE]
            published = await self._as_published(some, where)
            for definition_id in (stored.record.id for stored in some):
                if size >= PAGE_BYTES:
                    above, _ = within(*prefix)
                    return Listed(tuple(records), self._cursors(prefix).of_key(above, self._key(last)))
                last = definition_id
                if definition_id in published:
                    records.append(published[definition_id])
                    size += len(encode_json(published[definition_id].json_blob))
        return Listed(tuple(records), found.after)

    async def _as_published(
        self, found: Sequence[StoredDefinition], where: DefinitionFilter
    ) -> dict[str, Definition]:
        """By id each as it was last published; what is so no longer is left out, and no draft is shown."""
        published: dict[str, Definition] = {}
        for _ in range(RACES_MAX):
            wanted: dict[str, StoredDefinition] = {}
            for stored in found:
                if stored.published == stored.record.version:
                    published[stored.record.id] = stored.record
                elif stored.published is not None:
                    key = versioned.version_key(self._key(stored.record.id), stored.published)
                    wanted[key] = stored
            docs = await self._get_many(list(wanted))
            published |= {wanted[key].record.id: shown(doc) for key, doc in docs.items()}
            gone = {self._key(wanted[key].record.id): wanted[key] for key in wanted.keys() - docs.keys()}
            # Whoever published another since the heads were read may have taken that version out.
            heads = {key: self._shown(doc) for key, doc in (await self._get_many(list(gone))).items()}
            found = [
                head
                for key, head in heads.items()
                if head.published != gone[key].published and self._matches(head, where)
            ]
            if not found:
                break
        return published

    async def _get_many(self, keys: Sequence[str]) -> dict[str, Doc]:
        return await self.place.documents.get_many(self.partition, keys) if keys else {}

    def _cursors(self, prefix: tuple[str, ...]) -> Cursors:
        return list_scope(self.schema.kind, self.context.tenant_id, self.context.env, *prefix)

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
