"""Definitions as they are given, stored and shown.

Owns the types and their stored form. Leaves what a blob may hold to `stores/definition_shapes.py` and writing
to `stores/definition_writes.py`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engines.codec import Codec
from engines.ports.documents import Doc
from engines.stores.json_diff import Difference
from engines.stores.scoped import IdentityFields, Stamped, with_etag


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


class StoredDefinition(
    msgspec.Struct, frozen=True, tag_field="schema", tag="definition/1", omit_defaults=True
):
    """`oldest` is the lowest version that may still be kept, `slug` what the version is found by.

    `published`: the version that readers of published ones see, where the kind has drafts, and its own slug.
    That one is kept below `oldest` too, until another is published or a tombstone written.
    """

    record: Definition
    oldest: int = 1
    slug: str | None = None
    published: int | None = None
    published_slug: str | None = None

    def slugs(self) -> set[str]:
        """Those that it holds: beside a draft's own, the one under which readers find what is published."""
        return {slug for slug in (self.slug, self.published_slug) if slug is not None}


class SlugOwner(msgspec.Struct, frozen=True, tag_field="schema", tag="slug/1"):
    """Whose a slug is."""

    id: str


EVERYTHING: Final = DefinitionFilter()
STORED: Final = Codec(StoredDefinition)
OWNERS: Final = Codec(SlugOwner)


def shown(doc: Doc) -> Definition:
    """The definition that stands in a head or in a version."""
    return with_etag(STORED.decode(doc.body).record, doc.version)
