"""Definitions over HTTP: the same calls for every kind, made from the table of kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Handler, Router, Sendable
from engines.api.reply import deleted_reply, json_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.scope import RequestContext
from engines.stores.definition_records import Definition, DefinitionFilter, DefinitionInput, Diff
from engines.stores.definition_schemas import SCHEMAS, Schema

Version = Annotated[int, Meta(ge=1)]


class VersionQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which version; the present one where it is left out."""

    version: Version | None = None


class DefinitionQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list of definitions, and what to leave out of it."""

    app_id: str | None = None
    user_id: str | None = None
    slug: str | None = None
    status: str | None = None


class DiffQuery(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"from_version": "from", "to_version": "to"},
):
    """Which two versions to compare: the present one with the one before, where they are left out."""

    from_version: Version | None = None
    to_version: Version | None = None


class RestoreInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The version whose contents become the next one's."""

    version: Version


class CopyInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to copy to; what is left out is the request's own. `project_id` may be null: no project.

    Without `version` the present one is copied; without `id` the copy has the same id.
    """

    env: str | None = None
    surface_id: str | None = None
    project_id: str | msgspec.UnsetType | None = msgspec.UNSET
    id: str | None = None
    version: Version | None = None


class _Calls:
    """What the calls of one kind do."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    async def create(self, call: Call) -> Sendable:
        context = await call.context()
        body = await call.body(DefinitionInput)
        change = await call.engines.definitions.create(
            context, self._schema, body, request=call.request(context)
        )
        return record_reply(change.record, change.etag, created=True, replayed=change.replayed)

    async def list(self, call: Call) -> Sendable:
        query = call.query(DefinitionQuery)
        where = DefinitionFilter(query.app_id, query.user_id, query.slug, query.status)
        context = await call.context()
        return page_reply(
            await call.engines.definitions.list(context, self._schema, where, window=query.window())
        )

    async def get(self, call: Call) -> Sendable:
        version = call.query(VersionQuery).version
        context = await call.context()
        record = await call.engines.definitions.get(context, self._schema, call.id("id"), version=version)
        return record_reply(record, record.etag)

    async def put(self, call: Call) -> Sendable:
        context = await call.context()
        body = await call.body(DefinitionInput)
        change = await call.engines.definitions.put(
            context,
            self._schema,
            call.id("id"),
            body,
            condition=call.condition(),
            request=call.request(context),
        )
        return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)

    async def delete(self, call: Call) -> Sendable:
        context = await call.context()
        deletion = await call.engines.definitions.delete(
            context,
            self._schema,
            call.id("id"),
            condition=call.condition(),
            request=call.request(context),
        )
        return deleted_reply(replayed=deletion.replayed)

    async def versions(self, call: Call) -> Sendable:
        window = call.query(ListQuery).window()
        context = await call.context()
        definitions = call.engines.definitions
        return page_reply(await definitions.versions(context, self._schema, call.id("id"), window=window))

    async def diff(self, call: Call) -> Sendable:
        query = call.query(DiffQuery)
        context = await call.context()
        return json_reply(
            await call.engines.definitions.diff(
                context, self._schema, call.id("id"), query.from_version, query.to_version
            )
        )

    async def restore(self, call: Call) -> Sendable:
        context = await call.context()
        body = await call.body(RestoreInput)
        change = await call.engines.definitions.restore(
            context,
            self._schema,
            call.id("id"),
            body.version,
            condition=call.condition(),
            request=call.request(context),
        )
        return record_reply(change.record, change.etag, replayed=change.replayed)

    async def copy(self, call: Call) -> Sendable:
        context = await call.context()
        body = await call.body(CopyInput)
        change = await call.engines.definitions.copy(
            context,
            self._schema,
            call.id("id"),
            await _target(call, context, body),
            target_id=body.id,
            version=body.version,
            condition=call.condition(),
            request=call.request(context),
        )
        return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


async def _target(call: Call, context: RequestContext, body: CopyInput) -> RequestContext:
    """The caller's own context elsewhere, derived as if the request had named it. Raises what that raises."""
    wanted: dict[bytes, str | None] = {}
    if body.env is not None:
        wanted[b"x-env"] = body.env
    if body.surface_id is not None:
        wanted[b"x-surface-id"] = body.surface_id
    if body.project_id is not msgspec.UNSET:
        wanted[b"x-project-id"] = body.project_id
    if not wanted:
        return context
    headers = [(name, value) for name, value in call.scope["headers"] if name not in wanted]
    headers += [(name, value.encode()) for name, value in wanted.items() if value is not None]
    return await call.engines.contexts.context_of(headers, request_id=context.request_id)


_RECORD: Final[Mapping[str, Any]] = {"reply": Definition, "has_etag": True}
_PAGE: Final[Mapping[str, Any]] = {"reply": Page[Definition]}

# The method, the path below the kind's, the verb that names the call, its sentence, the endpoint's options.
_CALLS: Final[Sequence[tuple[str, str, str, str, Mapping[str, Any]]]] = (
    (
        "post",
        "",
        "create",
        "A new definition among {holds}.\n\nThe server names it where the body gives no id.",
        {"body": DefinitionInput, "is_stored_whole": True, "statuses": (201,), **_RECORD},
    ),
    ("get", "", "list", "Of {holds}: those of the bound scope, by id.", {"query": DefinitionQuery, **_PAGE}),
    ("get", "/{id}", "get", "The present version, or one that is kept.", {"query": VersionQuery, **_RECORD}),
    (
        "put",
        "/{id}",
        "put",
        "Write the next version, having said which one it follows.",
        {"body": DefinitionInput, "is_stored_whole": True, "conditions": "required", **_RECORD},
    ),
    (
        "delete",
        "/{id}",
        "delete",
        "Hide it behind a tombstone, which is a version too and can be undone.",
        {"conditions": "required"},
    ),
    (
        "get",
        "/{id}/versions",
        "versions",
        "Every version that is kept, with who wrote it and when.",
        {"query": ListQuery, **_PAGE},
    ),
    (
        "get",
        "/{id}/diff",
        "diff",
        "What changed from one version to another.",
        {"query": DiffQuery, "reply": Diff},
    ),
    (
        "post",
        "/{id}/restore",
        "restore",
        "Write what an earlier version says as the next version.",
        {"body": RestoreInput, "conditions": "optional", **_RECORD},
    ),
    (
        "post",
        "/{id}/copy",
        "copy",
        "Copy a version elsewhere in the tenant.\n\nA condition is the target's: without one it must be new.",
        {"body": CopyInput, "statuses": (201, 200), "conditions": "optional", **_RECORD},
    ),
)


def router_of(schema: Schema) -> Router:
    """The calls of one kind of definition, each under a name of its own."""
    router, calls = Router(schema.name), _Calls(schema)
    for method, path, verb, sentence, options in _CALLS:
        handler = _named(
            getattr(calls, verb),
            f"{verb}_{schema.name.replace('-', '_')}",
            sentence.format(holds=schema.holds, id="{id}"),
        )
        getattr(router, method)(schema.base_path + path, **options)(handler)
    return router


def _named(handler: Handler, name: str, sentence: str) -> Handler:
    async def named(call: Call) -> Sendable:
        return await handler(call)

    named.__name__, named.__doc__ = name, sentence
    return named


ROUTERS: Final = tuple(router_of(schema) for schema in SCHEMAS)
