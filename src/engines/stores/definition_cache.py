"""Definitions in force: all of one kind in one scope, compiled, as they were read a moment ago.

Owns how many definitions a decision may rest on and how old they may be. Leaves age, the one read under way
and the bound on what is kept to `stores/fresh.py`, and what a definition means to whoever compiles it.

They are read in the server's own name, because what a decision rests on does not depend on what its caller
may read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from engines.clock import Clock
from engines.codec import encode_json
from engines.core.listing import LIMIT_MAX, Window
from engines.errors import ContextMismatch, Corrupt, TooLarge
from engines.scope import RequestContext
from engines.stores.definition_records import Definition
from engines.stores.definition_schemas import Schema
from engines.stores.definitions import Definitions
from engines.stores.fresh import Fresh

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

AGE_MAX_S: Final = 1.0
# Of one kind in one scope.
DEFINITIONS_MAX: Final = 2_000
SCOPES_KEPT_MAX: Final = 1_000
# Of the definitions' JSON; compiled they take several times as much.
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
# What a definition weighs beside its JSON, and each name under which it is found.
_DEFINITION_BYTES: Final = 512
_NAME_BYTES: Final = 64

Scope = tuple[str, str, str, str, str | None, str | None]


class _Known(msgspec.Struct, Generic[T], frozen=True):
    """The compiled definitions by id, and of each the version that it was compiled from and its weight.

    `named` are the same by what they are found under, filled page by page as they are read.
    """

    compiled: dict[str, T]
    versions: dict[str, tuple[str, int]]
    named: dict[str, list[T]]


class DefinitionCache(Generic[T]):
    """The definitions of one kind, by the scope of whoever asks. On one event loop.

    `compile_one` makes of a definition what decisions ask; it is given a definition once for each version.
    `names_of` says under which names one is found (`get_named`), so that nobody walks through them all.
    """

    def __init__(
        self,
        definitions: Definitions,
        schema: Schema,
        compile_one: Callable[[Definition], T],
        clock: Clock,
        *,
        names_of: Callable[[T], Iterable[str]] = lambda _: (),
        definitions_max: int = DEFINITIONS_MAX,
    ) -> None:
        self._definitions = definitions
        self._schema = schema
        self._compile = compile_one
        self._names_of = names_of
        self._definitions_max = definitions_max
        self._sets: Fresh[Scope, _Known[T]] = Fresh(
            clock,
            age_max_s=AGE_MAX_S,
            entries_max=SCOPES_KEPT_MAX,
            weight_max=KEPT_BYTES_MAX,
            weigh=lambda known: _DEFINITION_BYTES + sum(weight for _, weight in known.versions.values()),
        )

    def kept(self, context: RequestContext) -> Mapping[str, T] | None:
        """What `get` returns, where that takes no read; else None."""
        known = self._kept(context)
        return None if known is None else known.compiled

    def kept_named(self, context: RequestContext) -> Mapping[str, Sequence[T]] | None:
        """What `get_named` returns, where that takes no read; else None."""
        known = self._kept(context)
        return None if known is None else known.named

    async def get(self, context: RequestContext) -> Mapping[str, T]:
        """By id, all that are not deleted, none older than a second. No read while they are fresh.

        Raises TooLarge for a scope with more than `definitions_max`, and what reading them raises:
        MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt.
        """
        return (await self._known(context)).compiled

    async def get_named(self, context: RequestContext) -> Mapping[str, Sequence[T]]:
        """The same by each of their names. Raises what `get` raises."""
        return (await self._known(context)).named

    async def close(self) -> None:
        """End the reads under way."""
        await self._sets.close()

    def _kept(self, context: RequestContext) -> _Known[T] | None:
        return None if context.acting_on is not None else self._sets.kept(_scope(context), None)

    async def _known(self, context: RequestContext) -> _Known[T]:
        if context.acting_on is not None:
            raise ContextMismatch("data is reached only from its own tenant", field="X-Tenant-Id")
        own = as_server(context)

        async def read(before: _Known[T] | None) -> _Known[T]:
            return await self._read(own, before)

        return await self._sets.get(_scope(context), read)

    async def _read(self, context: RequestContext, before: _Known[T] | None) -> _Known[T]:
        known: _Known[T] = _Known({}, {}, {})
        window = Window(limit=LIMIT_MAX)
        while True:
            listed = await self._definitions.list(context, self._schema, window=window)
            for record in listed.items:
                self._add(known, record, before)
            if len(known.compiled) > self._definitions_max:
                raise TooLarge(
                    f"at most {self._definitions_max:,} definitions of {self._schema.name} are in force in "
                    "one scope; delete those that are not used"
                )
            if listed.after is None:
                return known
            window = Window(limit=LIMIT_MAX, after=listed.after)

    def _add(self, known: _Known[T], record: Definition, before: _Known[T] | None) -> None:
        """Compiled anew only if this is another version than the one before."""
        former = None if before is None else before.versions.get(record.id)
        if before is not None and former is not None and former[0] == record.etag:
            one, version = before.compiled[record.id], former
            names = tuple(self._names_of(one))
        else:
            one = self._compile(record)
            names = tuple(self._names_of(one))
            weight = _DEFINITION_BYTES + len(encode_json(record.json_blob)) + _NAME_BYTES * len(names)
            version = (record.etag, weight)
        known.compiled[record.id], known.versions[record.id] = one, version
        for name in names:
            if name in known.named:
                known.named[name].append(one)
            else:
                known.named[name] = [one]


def shaped(record: Definition, type_: type[S]) -> S:
    """A definition as its shape. Raises Corrupt where it was stored under rules that are no longer ours."""
    try:
        return msgspec.convert(record.json_blob, type_)
    except msgspec.ValidationError as error:
        raise Corrupt(f"the definition {record.id!r} does not have the shape of its kind") from error


def as_server(context: RequestContext) -> RequestContext:
    """The server itself where the caller is, reading definitions and nothing else."""
    return msgspec.structs.replace(
        context, user_id="system", roles=(), permissions=frozenset({"definitions.read"})
    )


def _scope(context: RequestContext) -> Scope:
    """What definitions are found by, and what their route may depend on."""
    return (
        context.tenant_id,
        context.mode,
        context.env,
        context.surface_id,
        context.app_id,
        context.project_id,
    )
