"""Documents as items of the table, and the requests that carry them.

Owns the attributes' names, the conditions, the bounds of a range, and reading items back. Leaves sending to
`client.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engines.errors import Corrupt
from engines.ports.documents import Absent, Doc, Match, Op, Put

# None of them is a reserved word of DynamoDB, so expressions name them as they are.
PARTITION: Final = "pk"
KEY: Final = "sk"
BODY: Final = "body"
VERSION: Final = "ver"
EXPIRY: Final = "exp"

# A document that has expired stays for days until the service sweeps it: to a condition it is absent.
_ABSENT: Final = f"attribute_not_exists({KEY}) OR {EXPIRY} <= :now"
_MATCH: Final = f"{VERSION} = :version"
_RANGE: Final = f"{PARTITION} = :partition AND {KEY} BETWEEN :first AND :last"

Item = Mapping[str, Mapping[str, str]]
Request = dict[str, Any]


def primary_key(partition: str, key: str) -> Request:
    return {PARTITION: {"S": partition}, KEY: {"S": key}}


def write_request(table: str, partition: str, op: Op, write_id: str, now: int) -> tuple[str, Request]:
    """`Put` or `Delete`, and its request: the same by itself and inside a transaction."""
    if isinstance(op, Put):
        kind, request = "Put", {"TableName": table, "Item": _item(partition, op, write_id)}
    else:
        kind, request = "Delete", {"TableName": table, "Key": primary_key(partition, op.key)}
    if isinstance(op.when, Match):
        request["ConditionExpression"] = _MATCH
        request["ExpressionAttributeValues"] = {":version": {"S": op.when.version}}
    elif isinstance(op.when, Absent):
        request["ConditionExpression"] = _ABSENT
        request["ExpressionAttributeValues"] = {":now": {"N": str(now)}}
    return kind, request


def _item(partition: str, op: Put, write_id: str) -> Request:
    item = {
        PARTITION: {"S": partition},
        KEY: {"S": op.key},
        BODY: {"S": op.body},
        VERSION: {"S": op.write_id or write_id},
    }
    if op.expires_at is not None:
        item[EXPIRY] = {"N": str(op.expires_at)}
    return item


def range_request(
    table: str, partition: str, *, above: str, below: str, limit: int, reverse: bool
) -> Request | None:
    """A query for above < key < below; None for a range in which no key can lie.

    BETWEEN includes its bounds. Keys are printable ASCII, so the least string above one is that key with a
    NUL, and nothing lies between the last character's predecessor with a DEL and the key itself. A bound that
    was read and dropped would be paid for with every page.
    """
    first = above + "\x00"
    last = below[:-1] + chr(ord(below[-1]) - 1) + "\x7f"
    if first > last:
        return None
    return {
        "TableName": table,
        "KeyConditionExpression": _RANGE,
        "ExpressionAttributeValues": {
            ":partition": {"S": partition},
            ":first": {"S": first},
            ":last": {"S": last},
        },
        "ConsistentRead": True,
        "ScanIndexForward": not reverse,
        "Limit": limit,
    }


def live_doc(item: Item, now: int) -> Doc | None:
    """None for a document that has expired. Raises Corrupt for an item that no driver of ours has put."""
    try:
        expiry = item.get(EXPIRY)
        expires_at = None if expiry is None else int(expiry["N"])
        doc = Doc(item[KEY]["S"], item[BODY]["S"], item[VERSION]["S"], expires_at)
    except (KeyError, ValueError) as error:
        key = item.get(KEY, {}).get("S", "")
        raise Corrupt(f"the item at {key} of the table is not a document") from error
    return doc if expires_at is None or expires_at > now else None
