"""Stored JSON: msgspec Structs to text and back, each with a schema name and version.

Owns the wire form of what is stored (`{"schema": "note/1", ...}`), the acceptance of earlier versions,
and the rules for JSON that users send as values. Leaves the meaning of each record to its store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar, Union

import msgspec

from engines.errors import Corrupt, Invalid

T = TypeVar("T", bound=msgspec.Struct)

JSON_DEPTH_MAX: Final = 64
# What every JSON reader either keeps exactly or knows how to refuse: signed and unsigned 64-bit integers.
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1

_encoder = msgspec.json.Encoder()
_sorting_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder()


class Codec(Generic[T]):
    """Text form of one record type.

    `current` is a Struct declared with `tag_field="schema", tag="name/N"`; `previous` maps the Structs of
    earlier versions to the function that lifts one to `current`.
    """

    def __init__(
        self, current: type[T], previous: Mapping[type[Any], Callable[[Any], T]] | None = None
    ) -> None:
        self._upgrades = dict(previous or {})
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Union[(current, *self._upgrades)])

    def encode(self, value: T) -> str:
        return _encoder.encode(value).decode()

    def decode(self, body: str) -> T:
        """Raises Corrupt for text that no known version of the schema reads."""
        try:
            value = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise Corrupt("a stored record does not decode") from error
        upgrade = self._upgrades.get(type(value))
        return value if upgrade is None else upgrade(value)


def encode_json(value: Any) -> str:
    """Compact JSON text; non-ASCII characters stay themselves."""
    return _encoder.encode(value).decode()


def decode_json(text: str | bytes) -> Any:
    """Raises Corrupt: for stored text alone, never for a request's body."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Corrupt("a stored body is not JSON") from error


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: members sorted by name. For digests and comparisons."""
    return _sorting_encoder.encode(value).decode()


def check_json_value(value: Any, field: str) -> None:
    """Refuse a decoded value that cannot be kept exactly.

    Raises Invalid for containers nested deeper than `JSON_DEPTH_MAX` (the body's own object counts) and
    for integers beyond 64 bits. Walks level by level, so a deep value cannot exhaust the stack.
    """
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below.extend(item.values())
            elif type(item) is list:
                below.extend(item)
            elif type(item) is int and not INTEGER_MIN <= item <= INTEGER_MAX:
                raise Invalid("an integer does not fit into 64 bits", field=field)
        if not below:
            return
        level = below
    raise Invalid(f"JSON is nested deeper than {JSON_DEPTH_MAX} levels", field=field)


def escaped_bytes(body: str) -> int:
    """Size of a JSON text in UTF-8 when it is escaped once more as a JSON string.

    Some services store bodies so. JSON text holds no raw control character, so only `"` and `\\` grow.
    """
    return len(body.encode()) + body.count('"') + body.count("\\") + 2
