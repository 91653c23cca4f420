"""The blackboard: state that the agents of one run share, every state it had a version.

Owns entries and their keys `b!{project or -}!{run}!{key}`, anchored at project and run. A write says what it
expects to replace, so nobody overwrites what they have not seen. How large a value may be and how many
versions are kept is the route's to say, within the catalogue's bounds. Leaves keeping versions to
`core/versioned.py`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value, encode_json
from engines.core import records, versioned
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import NO_PROJECT, join, record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Place, Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import Invalid, NotFound, TooLarge
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, IdentityFields, Stamped, check_body, stamp, with_etag

_OPTIONS: Final = {option.name: option for option in catalogue.kind_named(catalogue.BLACKBOARD).options}


class BlackboardInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT."""

    value: Any


class BlackboardEntry(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """An entry as it is stored and shown, the present one or an earlier version.

    `run_id` is the run whose blackboard it is; the identity is the writer's of this version.
    """

    key: str
    value: Any
    version: int
    created_at: str
    updated_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="blackboard/1"):
    """`oldest` is the lowest version that may still be kept."""

    record: BlackboardEntry
    oldest: int


_CODEC: Final = Codec(_Stored)


class Blackboard:
    """The blackboards of a tenant and env, within the bound project.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown.
    """

    def __init__(self, places: Places, clock: Clock) -> None:
        self._places = places
        self._clock = clock

    async def get(
        self, context: RequestContext, run_id: str, key: str, *, version: int | None = None
    ) -> BlackboardEntry:
        """The present entry, or the version asked for while it is kept. One read.

        Raises Invalid (a version below 1), NotFound.
        """
        context.require_data("blackboard.read")
        head_key = _key(context, run_id, key)
        if version is not None and not 1 <= version <= versioned.VERSION_MAX:
            raise Invalid(f"a version is a whole number from 1 to {versioned.VERSION_MAX}", field="version")
        place = await self._places.place(catalogue.BLACKBOARD, context)
        partition = await place.partition(_anchor(context, run_id))
        if version is None:
            doc = await place.documents.get(partition, head_key)
        else:
            doc = await versioned.read_version(place.documents, partition, head_key, version)
        if doc is None:
            raise _no_such_entry()
        return _shown(doc)

    async def put(
        self,
        context: RequestContext,
        run_id: str,
        key: str,
        entry: BlackboardInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[BlackboardEntry]:
        """The next version. Head and version are one atomic write, and so is dropping what is past the limit.

        Raises PreconditionRequired (no condition), PreconditionFailed (it does not hold: read again),
        Invalid, TooLarge, IdempotencyKeyReused.
        """
        context.require_data("blackboard.write")
        head_key = _key(context, run_id, key)
        condition.required()
        entry = check_body(context, entry)
        check_json_value(entry.value, "value")
        async with self._places.changing(catalogue.BLACKBOARD, context) as place:
            value_bytes_max = _option(place, "value_bytes_max")
            if len(encode_json(entry.value).encode()) > value_bytes_max:
                raise TooLarge(
                    f"a value of this blackboard holds at most {value_bytes_max} bytes", field="value"
                )
            versions_kept = _option(place, "versions_kept")
            now = timestamp(self._clock.now())

            def build(doc: Doc | None) -> Draft:
                former = None if doc is None else _CODEC.decode(doc.body)
                record = BlackboardEntry(
                    **stamp(context) | {"run_id": run_id},
                    key=key,
                    value=entry.value,
                    version=1 if former is None else former.record.version + 1,
                    created_at=now if former is None else former.record.created_at,
                    updated_at=now,
                )
                return _draft(head_key, record, 1 if former is None else former.oldest, versions_kept)

            partition = await place.partition(_anchor(context, run_id))
            written = await records.replace(
                place.documents, partition, head_key, build, condition=condition, request=request
            )
        return Change(_shown(written.doc), written.created, written.replayed)

    async def list(
        self, context: RequestContext, run_id: str, *, window: Window = START
    ) -> Listed[BlackboardEntry]:
        """The present entries of a run, by key. Raises Invalid (a limit or a cursor)."""
        context.require_data("blackboard.read")
        names = (context.project_id or NO_PROJECT, check_id(run_id, "run_id"))
        return await self._list(context, run_id, ("b", *names), window)

    async def versions(
        self, context: RequestContext, run_id: str, key: str, *, window: Window = START
    ) -> Listed[BlackboardEntry]:
        """The versions kept of one entry, by number. Raises Invalid (a limit or a cursor), NotFound."""
        context.require_data("blackboard.read")
        head_key = _key(context, run_id, key)
        listed = await self._list(context, run_id, versioned.versions_prefix(head_key), window)
        if not listed.items and window.after is None:
            raise _no_such_entry()
        return listed

    async def _list(
        self, context: RequestContext, run_id: str, prefix: tuple[str, ...], window: Window
    ) -> Listed[BlackboardEntry]:
        place = await self._places.place(catalogue.BLACKBOARD, context)
        return await list_records(
            place.documents,
            await place.partition(_anchor(context, run_id)),
            prefix,
            _shown,
            cursors=list_scope(catalogue.BLACKBOARD, context.tenant_id, context.env, *prefix),
            window=window,
        )


def _anchor(context: RequestContext, run_id: str) -> str:
    return join(context.project_id or NO_PROJECT, run_id)


def _key(context: RequestContext, run_id: str, key: str) -> str:
    check_id(run_id, "run_id")
    check_id(key, "key")
    return record_key("b", context.project_id or NO_PROJECT, run_id, key)


def _option(place: Place, name: str) -> int:
    """What the route says; its bounds were checked when it was written."""
    value = place.options.get(name, _OPTIONS[name].default)
    assert isinstance(value, int)
    return value


def _draft(head_key: str, record: BlackboardEntry, oldest: int, kept: int) -> Draft:
    """The head, its version beside it, and out with versions past `kept`, the lowest of which is `oldest`."""
    number = record.version
    body = _CODEC.encode(_Stored(record, versioned.oldest_after(number, kept=kept, oldest=oldest)))
    return Draft(body, also=versioned.version_ops(head_key, body, number, kept=kept, oldest=oldest))


def _shown(doc: Doc) -> BlackboardEntry:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)


def _no_such_entry() -> NotFound:
    return NotFound("there is no such blackboard entry, or it is no longer kept")
