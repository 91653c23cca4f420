"""Stored JSON: msgspec Structs to text and back, each with a schema name and version.

Owns the wire form of what is stored (`{"schema": "note/1", ...}`), the acceptance of earlier versions,
and the rules for JSON that users send as values. Leaves the meaning of each record to its store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar, Union

import msgspec

from engines.errors import Corrupt, Invalid

T = TypeVar("T", bound=msgspec.Struct)

JSON_DEPTH_MAX: Final = 64
# What every JSON reader either keeps exactly or knows how to refuse: signed and unsigned 64-bit integers.
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1

_NAMES: Final = {str}
_ALWAYS_EXACT: Final = frozenset((str, bool, type(None)))

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
        """Raises Invalid for text that is not Unicode (a lone surrogate), which no JSON body can hold."""
        return encode_json(value)

    def decode(self, body: str) -> T:
        """Raises Corrupt for text that no known version of the schema reads."""
        try:
            value = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise Corrupt("a stored record does not decode") from error
        upgrade = self._upgrades.get(type(value))
        return value if upgrade is None else upgrade(value)


def encode_json(value: Any) -> str:
    """Compact JSON text; non-ASCII characters stay themselves. Raises Invalid for a lone surrogate."""
    try:
        return _encoder.encode(value).decode()
    except UnicodeEncodeError as error:
        raise Invalid("text holds a character that is not Unicode") from error


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

    Raises Invalid for containers nested deeper than `JSON_DEPTH_MAX` (the body's own object counts), for
    integers beyond 64 bits, and for what only a caller in process can pass: NaN, infinities, and objects
    that JSON would turn into something else. Walks level by level, so depth cannot exhaust the stack.
    """
    level = _containers_among((value,), field)
    for _ in range(JSON_DEPTH_MAX - 1):
        if not level:
            return
        below: list[Any] = []
        for container in level:
            below += _containers_among(container.values() if type(container) is dict else container, field)
        level = below
    if level:
        raise Invalid(f"JSON is nested deeper than {JSON_DEPTH_MAX} levels", field=field)


def _containers_among(items: Iterable[Any], field: str) -> list[Any]:
    """The objects and lists among `items`; everything else among them is judged here."""
    containers: list[Any] = []
    for item in items:
        kind = type(item)
        if kind in _ALWAYS_EXACT:
            continue
        if kind is dict:
            if item and set(map(type, item)) != _NAMES:
                raise Invalid("the members of a JSON object have names that are strings", field=field)
            containers.append(item)
        elif kind is list:
            containers.append(item)
        else:
            _check_number(item, field)
    return containers


def _check_number(item: Any, field: str) -> None:
    if type(item) is int:
        if not INTEGER_MIN <= item <= INTEGER_MAX:
            raise Invalid("an integer does not fit into 64 bits", field=field)
    elif type(item) is not float or not math.isfinite(item):
        raise Invalid("the value is not JSON", field=field)


def escaped_bytes(body: str) -> int:
    """Size of a JSON text in UTF-8 when it is escaped once more as a JSON string.

    Some services store bodies so. JSON text holds no raw control character, so only `"` and `\\` grow.
    """
    return len(body.encode()) + body.count('"') + body.count("\\") + 2
