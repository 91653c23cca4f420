"""What a request's headers say about identity and provenance, before any of it is believed.

Owns which headers there are, refusing one that is sent twice, and their text. Leaves their meaning to
`derivation.py` (the first eight, which tell contexts apart) and `context.py` (the others, which vary with
each request).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from engines.errors import Invalid
from engines.identity.tokens import unauthenticated

Sent = list[bytes | None]
"""Header values by slot; None where the header was not sent."""

AUTHORIZATION: Final = 0
TENANT: Final = 1
USER: Final = 2
MODE: Final = 3
ENV: Final = 4
SURFACE: Final = 5
APP: Final = 6
PROJECT: Final = 7
IDENTITY_SLOTS: Final = 8
RUN: Final = 8
STEP: Final = 9
THREAD: Final = 10
SESSION: Final = 11
REQUEST: Final = 12
TRACEPARENT: Final = 13

NAMES: Final = (
    "Authorization",
    "X-Tenant-Id",
    "X-User-Id",
    "X-Mode",
    "X-Env",
    "X-Surface-Id",
    "X-App-Id",
    "X-Project-Id",
    "X-Run-Id",
    "X-Step-Id",
    "X-Thread-Id",
    "X-Session-Id",
    "X-Request-Id",
    "traceparent",
)
_SLOTS: Final = {name.lower().encode(): slot for slot, name in enumerate(NAMES)}
_NOTHING_SENT: Final[Sent] = [None] * len(NAMES)
_BEARER: Final = b"bearer "
# W3C Trace Context, section 3.2: version, trace-id, parent-id, flags; a later version may append more.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


def sent_raw(raw_headers: Iterable[tuple[bytes, bytes]]) -> Sent:
    """From ASGI's list, whose names are in lower case. Raises Invalid, Unauthenticated."""
    sent = _NOTHING_SENT.copy()
    slots = _SLOTS
    for name, value in raw_headers:
        slot = slots.get(name)
        if slot is not None:
            sent[slot] = value if sent[slot] is None else _sent_twice(slot)
    return sent


def sent_mapping(credential: str | None, headers: Mapping[str, str]) -> Sent:
    """From a bare credential and names in lower case, as a program in this process gives them."""
    sent = [
        None if (value := headers.get(name.lower())) is None else value.encode(errors="surrogatepass")
        for name in NAMES
    ]
    bearer = None if credential is None else _BEARER + credential.encode(errors="surrogatepass")
    sent[AUTHORIZATION] = bearer
    return sent


def bearer(sent: Sent) -> str:
    """The credential of `Authorization: Bearer`. Raises Unauthenticated."""
    value = sent[AUTHORIZATION]
    if value is None or value[: len(_BEARER)].lower() != _BEARER or not value.isascii():
        raise unauthenticated()
    return value[len(_BEARER) :].decode("ascii")


def text(sent: Sent, slot: int) -> str | None:
    """A header's value. Surfaces have names that are not ASCII; clients send those as UTF-8 or Latin-1."""
    value = sent[slot]
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def trace_of(sent: Sent) -> str | None:
    """The caller's trace id, or None where a new trace begins: what is malformed is as if it was not sent."""
    value = sent[TRACEPARENT]
    match = None if value is None else _TRACEPARENT.fullmatch(value)
    if match is None or (match[1] == b"00" and match[3] is not None):
        return None
    return match[2].decode()


def _sent_twice(slot: int) -> bytes | None:
    """Two values are no value. A repeated traceparent only begins a new trace."""
    if slot == TRACEPARENT:
        return b""
    if slot == AUTHORIZATION:
        raise unauthenticated()
    raise Invalid(f"{NAMES[slot]} is sent twice", field=NAMES[slot])
