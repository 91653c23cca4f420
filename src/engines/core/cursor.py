"""Cursors: how a caller says where in a list to go on.

Owns their form. A cursor holds a position of a log, or what tells a document's key apart from its list's
prefix; nothing in it belongs to a process or a backend, so it survives a restart, a restore and a move.
It is bound to its list by a keyed digest: one that was made for another list, or by nobody, is Invalid. The
digest keeps mistakes out, not attackers; what a cursor can reach is bounded by the list that reads it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from engines.core.keys import SEPARATOR, check_key
from engines.errors import Invalid

CURSOR_CHARS_MAX: Final = 1_024
POSITION_MAX: Final = 2**63 - 1
_DIGEST_BYTES: Final = 6
_DIGITS_MAX: Final = len(str(POSITION_MAX))
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")
# As `base64.urlsafe_b64encode` and in half of its time, because each event that is shown has a cursor.
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_KEY: Final = b"k"
_POSITION: Final = b"p"


class Cursors:
    """Makes and reads the cursors of one list, whichever its order. `scope` names the list, tenant first."""

    __slots__ = ("_keyed",)

    def __init__(self, *scope: str) -> None:
        key = hashlib.sha256("\n".join(scope).encode()).digest()
        self._keyed = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=key)

    def of_key(self, prefix: str, key: str) -> str:
        """The cursor of the document at `key`, which starts with the list's `prefix`."""
        assert key.startswith(prefix)
        return self._seal(_KEY + key[len(prefix) :].encode())

    def key(self, prefix: str, cursor: str, *, field: str = "after") -> str:
        """The document key behind `cursor`. Raises Invalid where it is not of this list."""
        text = self._open(_KEY, cursor, field)
        key = prefix + text.decode("ascii", "replace")
        if not text or not check_key(key):
            raise _foreign(field)
        return key

    def of_position(self, position: int) -> str:
        """The cursor of the event at `position`."""
        return self._seal(b"p%d" % position)

    def position(self, cursor: str, *, field: str = "after") -> int:
        """The position behind `cursor`. Raises Invalid where it is not of this list."""
        digits = self._open(_POSITION, cursor, field)
        if not digits.isdigit() or len(digits) > _DIGITS_MAX or int(digits) > POSITION_MAX:
            raise _foreign(field)
        return int(digits)

    def _seal(self, content: bytes) -> str:
        keyed = self._keyed.copy()
        keyed.update(content)
        text = binascii.b2a_base64(keyed.digest() + content, newline=False)
        return text.translate(_URL_SAFE, b"=").decode()

    def _open(self, purpose: bytes, cursor: str, field: str) -> bytes:
        if len(cursor) > CURSOR_CHARS_MAX or not _ALPHABET.fullmatch(cursor):
            raise _foreign(field)
        try:
            content = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[_DIGEST_BYTES:]
        except binascii.Error:
            raise _foreign(field) from None
        # Made again and compared: that checks the digest, and that nothing else decodes to the same.
        if not content.startswith(purpose) or self._seal(content) != cursor:
            raise _foreign(field)
        return content[1:]


def list_scope(kind: str, tenant_id: str, env: str, *names: str) -> Cursors:
    """The cursors of the list of `kind` that `names` tell apart."""
    return Cursors(tenant_id, env, kind, SEPARATOR.join(names))


def _foreign(field: str) -> Invalid:
    return Invalid("this cursor does not belong to this list", field=field)
