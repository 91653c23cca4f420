"""Header fields of a request: which may appear once, conditions, and idempotency keys.

Owns reading fields into values that the floors below understand. Leaves the fields that name an identity to
`identity/`, and the size of the header section to `api/protocol.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engines.core.records import ANYTHING, Condition
from engines.errors import Invalid

IDEMPOTENCY_KEY_CHARS_MAX: Final = 255

# RFC 9110, section 5.3: a list may come in several fields.
_LISTS: Final = frozenset({b"if-match", b"if-none-match"})
# Of these a second one is a riddle, and two readers could answer it differently. Headers that name an
# identity are refused by `identity/headers.py`.
_SINGLE: Final = frozenset(
    {
        b"host",
        b"content-type",
        b"content-length",
        b"idempotency-key",
        b"last-event-id",
        b"origin",
        b"x-request-id",
    }
)
_ENTITY_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")


class Fields:
    """The fields of one request by lower-case name. A list that came in parts is joined."""

    __slots__ = ("_values", "repeated")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._values = dict(raw)
        self.repeated: str | None = None
        """A field that came twice and may not."""
        if len(self._values) != len(raw):
            self._join(raw)

    def get(self, name: bytes) -> str | None:
        """The value, or None. Bytes that are not ASCII come as ISO 8859-1 and fit no pattern."""
        value = self._values.get(name)
        return None if value is None else value.decode("latin-1")

    def has(self, name: bytes) -> bool:
        return name in self._values

    def check(self) -> None:
        """Raises Invalid for a field that came twice and may not."""
        if self.repeated is not None:
            raise Invalid("this header field may appear once", field=self.repeated)

    def _join(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        joined: dict[bytes, bytes] = {}
        for name, value in raw:
            if name not in joined:
                joined[name] = value
            elif name in _LISTS:
                joined[name] += b", " + value
            elif name in _SINGLE:
                self.repeated = display_name(name)
        self._values = joined


def display_name(name: bytes) -> str:
    """`x-tenant-id` -> `X-Tenant-Id`, as the documentation writes it."""
    return name.decode("latin-1").title()


def condition_of(fields: Fields) -> Condition:
    """What `If-Match` and `If-None-Match` say of the record to be changed. Raises Invalid.

    A weak tag is never equal to a version: it is kept as a version that no record can have.
    """
    if_match, if_none_match = fields.get(b"if-match"), fields.get(b"if-none-match")
    if if_match is None and if_none_match is None:
        return ANYTHING
    versions: tuple[str, ...] = ()
    if if_match is not None:
        versions = ("*",) if if_match == "*" else _entity_tags(if_match, "If-Match")
    if if_none_match not in (None, "*"):
        _entity_tags(if_none_match or "", "If-None-Match")
        raise Invalid("for a change, If-None-Match is * alone", field="If-None-Match")
    return Condition(versions=versions, absent=if_none_match is not None)


def idempotency_key_of(fields: Fields) -> str | None:
    """1 to 255 printable ASCII characters, or None. Raises Invalid."""
    key = fields.get(b"idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid(f"1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters", field="Idempotency-Key")
    return key


def _entity_tags(value: str, field: str) -> tuple[str, ...]:
    """The tags of a list without their quotes (RFC 9110, section 8.8.3); a comma may stand inside a tag."""
    tags: list[str] = []
    position, expecting = 0, True
    while position < len(value):
        if value[position] in " \t":
            position += 1
        elif value[position] == ",":
            position, expecting = position + 1, True
        else:
            match = _ENTITY_TAG.match(value, position)
            if match is None or not expecting:
                break
            tags.append(match[0] if match[1] else match[2])
            position, expecting = match.end(), False
    if position < len(value) or not tags:
        raise Invalid('* or a list of entity tags such as "abc"', field=field)
    return tuple(tags)
