"""Paths and query strings, judged on the bytes that were sent.

Owns the rule for a path's segments, applied before anything routes on them, and the decoding of a query into
the Struct that a call declares. Leaves the meaning of a segment to its call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from engines.api.complaints import invalid
from engines.errors import Invalid

PATH_RULE: Final = "each path segment matches ^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}$ once it is decoded"
QUERY_PARAMETERS_MAX: Final = 32

_SEGMENT: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}")
_PLAIN_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127})+")
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")

Q = TypeVar("Q", bound=msgspec.Struct)


def check_path(raw: bytes) -> None:
    """Raises Invalid for a path that breaks the rule for segments. `/` alone is a path without any."""
    if _PLAIN_PATH.fullmatch(raw) or raw == b"/":
        return
    # Split first: an escaped slash is part of its segment, and breaks the rule there. So does a broken
    # escape, because its percent sign stays.
    rooted, *segments = raw.split(b"/")
    if rooted or not all(_SEGMENT.fullmatch(unquote_to_bytes(segment)) for segment in segments):
        raise Invalid(PATH_RULE, field="path")


class QueryDecoder(Generic[Q]):
    """Makes `type_` of a query string. A parameter that is unknown or repeated is refused."""

    def __init__(self, type_: type[Q]) -> None:
        self._type = type_
        self._default = type_()
        hints = get_type_hints(type_)
        self._integers = frozenset(name for name, hint in hints.items() if int in (hint, *get_args(hint)))

    def decode(self, raw: bytes) -> Q:
        """Raises Invalid with the parameter's name as `field`."""
        if not raw:
            return self._default
        values = parse_query(raw)
        for name in self._integers & values.keys():
            if not _INTEGER.fullmatch(values[name]):
                raise Invalid("a whole number in decimal digits", field=name)
        try:
            return msgspec.convert(values, self._type, strict=False)
        except msgspec.ValidationError as error:
            raise invalid(error, self._type) from None


def parse_query(raw: bytes) -> Mapping[str, str]:
    """Parameters by name. Raises Invalid for one that comes twice, a broken escape, text not in UTF-8."""
    if _BROKEN_ESCAPE.search(raw):
        raise Invalid("the query has a broken percent escape", field="query")
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=QUERY_PARAMETERS_MAX,
        )
    except ValueError:
        raise Invalid(
            f"a query is name=value pairs in UTF-8, at most {QUERY_PARAMETERS_MAX}", field="query"
        ) from None
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise Invalid("this parameter may appear once", field=name)
        values[name] = value
    return values
