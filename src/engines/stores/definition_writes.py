"""What one change of a definition writes: head, version, slugs and the message to the spine.

Owns the keys of definitions, `d!{name}!{surface or -}!{project or -}!{id}`, anchored at what stands before
the id, so that a slug (`u!…`) and its head share an atomic write. Leaves reading and racing to
`stores/definitions.py`, versions to `core/versioned.py`, delivery to `stores/announcements.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engines.codec import canonical_json
from engines.core import versioned
from engines.core.keys import NO_PROJECT, join, record_key
from engines.core.place import Place
from engines.core.records import Draft
from engines.errors import Conflict
from engines.ports.documents import ABSENT, ALWAYS, Delete, Op, Put
from engines.scope import RequestContext, check_id
from engines.stores.announcements import Announcements
from engines.stores.definition_records import OWNERS, STORED, Definition, SlugOwner, StoredDefinition
from engines.stores.definition_schemas import Schema

VERSIONS_KEPT_DEFAULT: Final = 1_000
_NO_SURFACE: Final = "-"


def scope_of(context: RequestContext, schema: Schema) -> tuple[str, str, str]:
    """What stands in a key before the id: a kind that has no surface or no project is one for all of them."""
    surface_id = context.surface_id if "surface_id" in schema.scope else _NO_SURFACE
    project_id = context.project_id if "project_id" in schema.scope else None
    return schema.name, surface_id, project_id or NO_PROJECT


def anchor(context: RequestContext, schema: Schema) -> str:
    """What shares a partition."""
    return join(*scope_of(context, schema))


def key_of(context: RequestContext, schema: Schema, definition_id: str) -> str:
    """The key of a head. Raises Invalid."""
    check_id(definition_id, "id")
    return record_key("d", *scope_of(context, schema), definition_id)


def slug_key(context: RequestContext, schema: Schema, slug: str) -> str:
    """A slug may be longer than a key and hold any character of a path; its digest stands for it."""
    digest = hashlib.sha256(slug.encode()).hexdigest()[:40]
    return join("u", *scope_of(context, schema), digest)


class DefinitionWrite(msgspec.Struct, frozen=True):
    """One change of one definition: what its write consists of."""

    context: RequestContext
    schema: Schema
    place: Place
    key: str

    def draft(
        self, record: Definition, former: StoredDefinition | None, announcements: Announcements
    ) -> tuple[Draft, Sequence[str]]:
        """The write, and the keys of slugs that must be free for it."""
        kept = int(self.place.options.get("versions_kept", VERSIONS_KEPT_DEFAULT))
        oldest = 1 if former is None else former.oldest
        stored = self._stored(
            record, former, versioned.oldest_after(record.version, kept=kept, oldest=oldest)
        )
        held = set() if former is None else former.slugs()
        added = [self._slug_key(slug) for slug in stored.slugs() - held]
        body = STORED.encode(stored)
        told = _told(self.schema, record, former)
        ops: list[Op] = [
            *versioned.version_ops(
                self.key,
                body,
                record.version,
                kept=kept,
                oldest=oldest,
                # Readers of what is published read that version, however many drafts came since.
                held_before=None if former is None else former.published,
                held=stored.published,
            ),
            *(Put(key, OWNERS.encode(SlugOwner(record.id)), ABSENT) for key in added),
            *(Delete(self._slug_key(slug), ALWAYS) for slug in held - stored.slugs()),
            announcements.message(self.context, self.key, record.version, self.schema.event_type, told),
        ]
        return Draft(body, also=ops), added

    def _stored(self, record: Definition, former: StoredDefinition | None, oldest: int) -> StoredDefinition:
        if record.deleted:
            return StoredDefinition(record, oldest)
        slug = self.schema.slug(record.json_blob)
        if self.schema.published_status is None:
            return StoredDefinition(record, oldest, slug)
        if self.schema.status(record.json_blob) == self.schema.published_status:
            return StoredDefinition(record, oldest, slug, record.version, slug)
        if former is None:
            return StoredDefinition(record, oldest, slug)
        return StoredDefinition(record, oldest, slug, former.published, former.published_slug)

    def taken(self) -> Conflict:
        """The slug is another's."""
        name = self.schema.slug_field
        return Conflict(f"another definition has this {name}", field=f"json_blob.{name}")

    def _slug_key(self, slug: str) -> str:
        return slug_key(self.context, self.schema, slug)


def _told(schema: Schema, record: Definition, former: StoredDefinition | None) -> dict[str, Any]:
    """What the spine learns of a version: not its contents, which may be large, but their digest.

    A state is told by the change that made it alone: its words are those of whoever did that.
    """
    told: dict[str, Any] = {
        "action": _action(record),
        "resource_kind": schema.kind,
        "definition": schema.name,
        "id": record.id,
        "version": record.version,
        "sha256": hashlib.sha256(canonical_json(record.json_blob).encode()).hexdigest(),
    }
    if record.state is not None and (former is None or former.record.state != record.state):
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
