"""Requests to Firestore, and what its replies hold.

Owns the layout: a document lies at `{collection}/{partition}/{collection}/{key}`, and its fields are `body`
(the JSON text), `version` (the write id), `key`, and `exp` (a timestamp) where it expires. The inner
collection bears the name of the outer one because index exemptions and TTL policies reach every collection of
one name in a database: no other application's collection may meet ours. `key` repeats the name, since the
service orders by name only upwards unless an index is made for it, and by a field both ways.

The messages are the service's own, without the wrappers of its library: those cost more than the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from google.cloud.firestore_v1.types import firestore as _service
from google.cloud.firestore_v1.types import query as _query

from engines.errors import BackendRefused, Corrupt
from engines.ports.documents import Absent, Doc, Match, Op, Put

CommitRequest: Final[Any] = _service.CommitRequest.pb()
CommitResponse: Final[Any] = _service.CommitResponse.pb()
BatchGetRequest: Final[Any] = _service.BatchGetDocumentsRequest.pb()
BatchGetResponse: Final[Any] = _service.BatchGetDocumentsResponse.pb()
RunQueryRequest: Final[Any] = _service.RunQueryRequest.pb()
RunQueryResponse: Final[Any] = _service.RunQueryResponse.pb()
_StructuredQuery: Final[Any] = _query.StructuredQuery.pb()
_ASCENDING: Final = int(_query.StructuredQuery.Direction.ASCENDING)
_DESCENDING: Final = int(_query.StructuredQuery.Direction.DESCENDING)

# What the service's timestamps can say: the years 1 to 9999.
EXPIRES_AT_MIN: Final = -62_135_596_800
EXPIRES_AT_MAX: Final = 253_402_300_799

Token = tuple[int, int]
"""A document's update_time, seconds and nanoseconds: the service's own version of it, unique in its life."""


class Stored(msgspec.Struct, frozen=True):
    """A document with its token, whether it has expired or not."""

    doc: Doc
    token: Token

    def is_live(self, now: float) -> bool:
        return self.doc.expires_at is None or self.doc.expires_at > now


class Layout:
    """Where documents lie in one database."""

    def __init__(self, project: str, database: str, collection: str) -> None:
        self.database = f"projects/{project}/databases/{database}"
        self.collection = collection
        self._root = f"{self.database}/documents/{collection}"

    def parent(self, partition: str) -> str:
        return f"{self._root}/{partition}"

    def prefix(self, partition: str) -> str:
        """What stands before a key in the name of its document."""
        return f"{self._root}/{partition}/{self.collection}/"

    def commit(self, partition: str, ops: Sequence[Op], write_id: str, tokens: Mapping[str, Token]) -> Any:
        """Each conditioned op is conditioned on its key's token; an Absent without one on absence.

        Raises BackendRefused for what the service cannot hold.
        """
        prefix = self.prefix(partition)
        request = CommitRequest(database=self.database)
        for op in ops:
            write = request.writes.add()
            name = prefix + op.key
            if isinstance(op, Put):
                write.update.name = name
                _fill(write.update.fields, op, write_id)
            else:
                write.delete = name
            if isinstance(op.when, Match) or op.key in tokens:
                time = write.current_document.update_time
                time.seconds, time.nanos = tokens[op.key]
            elif isinstance(op.when, Absent):
                write.current_document.exists = False
        return request

    def batch_get(self, partition: str, keys: Iterable[str]) -> Any:
        prefix = self.prefix(partition)
        return BatchGetRequest(database=self.database, documents=[prefix + key for key in keys])

    def run_query(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Any:
        request = RunQueryRequest(parent=self.parent(partition))
        query = request.structured_query
        query.from_.add(collection_id=self.collection)
        query.limit.value = limit
        order = query.order_by.add()
        order.direction = _DESCENDING if reverse else _ASCENDING
        # A cursor lies before its value or behind it, in the order of the query.
        query.end_at.before = True
        start, end = query.start_at.values.add(), query.end_at.values.add()
        if reverse:
            order.field.field_path = "key"
            start.string_value, end.string_value = below, above
        else:
            prefix = self.prefix(partition)
            order.field.field_path = "__name__"
            bound = _nameable(above)
            query.start_at.before = bound != above
            start.reference_value, end.reference_value = prefix + bound, prefix + _nameable(below)
        return request


def _nameable(bound: str) -> str:
    """The bound itself, or, since no name holds a slash, the least name above every name below it."""
    before, slash, _ = bound.partition("/")
    return before + chr(ord(slash) + 1) if slash else bound


def _fill(fields: Any, op: Put, write_id: str) -> None:
    try:
        fields["body"].string_value = op.body
    except ValueError as error:
        raise BackendRefused("the body is no text that Firestore can hold") from error
    fields["version"].string_value = op.write_id or write_id
    fields["key"].string_value = op.key
    if op.expires_at is not None:
        if not EXPIRES_AT_MIN <= op.expires_at <= EXPIRES_AT_MAX:
            raise BackendRefused("expires_at is no time that Firestore can hold")
        fields["exp"].timestamp_value.seconds = op.expires_at


def stored(document: Any, prefix: str) -> Stored:
    """Raises Corrupt, naming the key, for a document that no put of this driver made."""
    key = document.name[len(prefix) :]
    fields = document.fields
    body, version = fields["body"], fields["version"]
    if (
        body.WhichOneof("value_type") != "string_value"
        or version.WhichOneof("value_type") != "string_value"
        or fields["key"].string_value != key
    ):
        raise _corrupt(key)
    expires_at = None
    if "exp" in fields:
        exp = fields["exp"]
        if exp.WhichOneof("value_type") != "timestamp_value" or exp.timestamp_value.nanos:
            raise _corrupt(key)
        expires_at = exp.timestamp_value.seconds
    # Whole seconds: `exp` is a timestamp because the TTL policy asks for one. Numbers are copied out, since a
    # message that is kept keeps the whole reply that it came in.
    time = document.update_time
    return Stored(Doc(key, body.string_value, version.string_value, expires_at), (time.seconds, time.nanos))


def _corrupt(key: str) -> Corrupt:
    return Corrupt(f"the document {key} was not written by Engines, or was changed by somebody else")
