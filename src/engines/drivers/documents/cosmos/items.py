"""How a document lies in Cosmos DB, and the queries that find it.

Owns the item's fields, its `ttl`, what of it is indexed, every query text, and reading an item back. An item
is not a document of ours if a field is missing or of another type; that is Corrupt and never passed over.
Leaves requests to `account.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engines.errors import Corrupt
from engines.ports.documents import ABSENT, Absent, Always, Delete, Doc, Match, Op, Put

# Cosmos DB hides an item by its own clock, so it is told to do so later: no clock that the service accepts a
# signature from is further from its own than this. Until then every read judges `exp` by the driver's clock.
CLOCK_SKEW_S: Final = 15 * 60
TTL_S_MAX: Final = 2**31 - 1

# Bodies are opaque. `id` is indexed without being named, the partition key only if it is: "Azure Cosmos DB
# indexing policies", https://learn.microsoft.com/azure/cosmos-db/index-policy
INDEXING_POLICY: Final[Mapping[str, Any]] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/pk/?"}],
    "excludedPaths": [{"path": "/*"}],
}

Item = dict[str, Any]
Parameters = list[dict[str, Any]]
# One operation of a transactional batch, as the SDK takes it.
Operation = tuple[str, tuple[Any, ...]] | tuple[str, tuple[Any, ...], dict[str, Any]]

_DOCUMENT: Final = "c.id, c.body, c.version, c.exp, c._etag"
_STANDING: Final = "c.id, c.version, c.exp, c._etag"


def operation(partition: str, op: Op, *, etag: str | None, write_id: str, now: float) -> Operation:
    """`etag` is that of the item which the op's condition lets it replace or remove; None: of none."""
    if isinstance(op, Delete):
        return ("delete", (op.key,), {} if etag is None else {"if_match_etag": etag})
    item = _item(partition, op, write_id, now)
    if etag is not None:
        return ("replace", (op.key, item), {"if_match_etag": etag})
    return ("create" if op.when == ABSENT else "upsert", (item,))


def _item(partition: str, op: Put, write_id: str, now: float) -> Item:
    item: Item = {"id": op.key, "pk": partition, "body": op.body, "version": op.write_id or write_id}
    if op.expires_at is not None:
        left_s = max(0, op.expires_at - math.floor(now))
        item |= {"exp": op.expires_at, "ttl": min(left_s + CLOCK_SKEW_S, TTL_S_MAX)}
    return item


def document(item: Mapping[str, Any]) -> Doc:
    """Raises Corrupt for an item that this driver cannot have written."""
    key, body, version, expires_at = item.get("id"), item.get("body"), item.get("version"), item.get("exp")
    if not isinstance(body, str) or not isinstance(version, str) or not _is_time(expires_at):
        raise Corrupt(f"the item {key} in the container is no document of Engines")
    assert isinstance(key, str)
    return Doc(key, body, version, expires_at)


def check_standing(item: Mapping[str, Any]) -> None:
    """The same for an item that was read without its body."""
    if not isinstance(item.get("version"), str) or not _is_time(item.get("exp")):
        raise Corrupt(f"the item {item.get('id')} in the container is no document of Engines")


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def is_live(expires_at: int | None, now: float) -> bool:
    return expires_at is None or expires_at > now


def culprits(ops: Sequence[Op], items: Mapping[str, Item], now: float) -> list[str]:
    """The keys of the ops whose condition is false of `items`."""
    return [op.key for op in ops if not _holds(op, items.get(op.key), now)]


def _holds(op: Op, item: Item | None, now: float) -> bool:
    match op.when:
        case Always():
            return True
        case Absent():
            return item is None or not is_live(item.get("exp"), now)
        case Match(version):
            return item is not None and item["version"] == version
    raise AssertionError(op)


# --- queries, each within one logical partition ---


def documents_of(keys: Sequence[str]) -> tuple[str, Parameters]:
    return _by_keys(_DOCUMENT, keys)


def standings_of(keys: Sequence[str]) -> tuple[str, Parameters]:
    """Versions, expiries and etags, without the bodies."""
    return _by_keys(_STANDING, keys)


def _by_keys(fields: str, keys: Sequence[str]) -> tuple[str, Parameters]:
    names = [f"@key{place}" for place in range(len(keys))]
    query = f"SELECT {fields} FROM c WHERE c.id IN ({', '.join(names)})"  # noqa: S608 (names of parameters)
    return query, [{"name": name, "value": key} for name, key in zip(names, keys, strict=True)]


def documents_between(above: str, below: str, *, reverse: bool) -> tuple[str, Parameters]:
    order = "DESC" if reverse else "ASC"
    query = f"SELECT {_DOCUMENT} FROM c WHERE c.id > @above AND c.id < @below ORDER BY c.id {order}"  # noqa: S608
    return query, [{"name": "@above", "value": above}, {"name": "@below", "value": below}]
