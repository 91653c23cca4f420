"""A request's body: read within limits, and decoded into what a call takes.

Owns the size and time limits of a body, its media type, and the rules that hold for the JSON of every body.
A member named twice is refused, since readers differ on which one counts. Leaves what a body is told that
breaks the rules of its type to `api/complaints.py`, rules that need more than the body to the floors below.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Final

import msgspec

from engines.api.complaints import invalid
from engines.api.fields import Fields
from engines.codec import INTEGER_MAX, INTEGER_MIN, JSON_DEPTH_MAX
from engines.core.records import RECORD_BYTES_MAX, too_large
from engines.errors import Invalid, RequestTimeout, TooLarge, UnsupportedMediaType

BODY_BYTES_MAX: Final = 1024 * 1024
# Of a body whose value is stored as it is: what else may stand in it, told again or left out of the record.
_BESIDE_BYTES_MAX: Final = 8 * 1024
# What has fewer is decoded in a moment, and told what else it may be: nested too deep, broken off.
_COMMAS_MIN: Final = 10_000
# Between two pieces of a body, and for all of it: a byte now and then is a stall too.
STALL_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 120.0

TypeOf = Callable[[Any], Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MEDIA_TYPE: Final = re.compile(
    r"([a-z]+/[a-z]+)(?:[ \t]*;[ \t]*charset=(?:utf-8|\"utf-8\"))?", re.IGNORECASE
)
# Every integer beyond 64 bits has as many digits; 0 stands for each of them.
_LONG_INTEGER: Final = b"0" * len(str(-INTEGER_MIN))
_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"0" * 9)
_CONTAINERS: Final = frozenset((dict, list))
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode
_decode_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ClientGone(Exception):
    """The connection ended before the request was complete; nobody waits for an answer."""


async def read_body(fields: Fields, receive: Receive, *, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body. Raises TooLarge, RequestTimeout, ClientGone."""
    announced = fields.get(b"content-length")
    if announced is not None and int(announced) > bytes_max:
        raise _too_large(bytes_max)
    try:
        return await _read(receive, bytes_max)
    except TimeoutError as error:
        raise RequestTimeout("the body did not come in time") from error


async def _read(receive: Receive, bytes_max: int) -> bytes:
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_TIMEOUT_S
    pieces: list[bytes] = []
    size = 0
    async with asyncio.timeout(STALL_TIMEOUT_S) as deadline:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > bytes_max:
                raise _too_large(bytes_max)
            pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            deadline.reschedule(min(loop.time() + STALL_TIMEOUT_S, end))


def check_media_type(fields: Fields, accepts: Sequence[str]) -> None:
    """Raises UnsupportedMediaType."""
    media_type = fields.get(b"content-type")
    if media_type in accepts:
        return
    match = _MEDIA_TYPE.fullmatch(media_type or "")
    if match is None or match[1].lower() not in accepts:
        raise UnsupportedMediaType(f"a body is {' or '.join(accepts)}, in UTF-8")


def check_storable(body: bytes) -> None:
    """Raises TooLarge for a body that no record holds, before the time is spent to decode it.

    White space, escapes and digits may be fewer in the record; each comma, colon, bracket and quote that
    stands in the body stands there too, and a quote counts twice.
    """
    if len(body) <= RECORD_BYTES_MAX or body.count(b",") < _COMMAS_MIN:
        return
    least = sum(map(body.count, (b",", b":", b"[", b"]", b"{", b"}"))) + 2 * body.count(b'"')
    if least > RECORD_BYTES_MAX + _BESIDE_BYTES_MAX:
        raise too_large()


def decode_body(body: bytes, type_of: TypeOf) -> Any:
    """A value of the type that `type_of` chooses for the decoded JSON.

    Raises Invalid with the `field` that breaks a rule, where one does.
    """
    type_: Any = Any
    try:
        value = _decoded(body, type_of)
        _check_structure(body, value)
        type_ = type_of(value)
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise invalid(error, type_) from None
    except UnicodeDecodeError as error:
        raise Invalid("the body is not UTF-8") from error
    except msgspec.DecodeError as error:
        raise Invalid(_malformed(body, str(error))) from error
    except RecursionError:
        raise _too_deep() from None


def _decoded(body: bytes, type_of: TypeOf) -> Any:
    try:
        return _decode(body)
    except msgspec.ValidationError:
        # A number that no float holds. Decoded as its type, the complaint names the member.
        return msgspec.json.decode(body, type=type_of(_decode_members(body)))


def _malformed(body: bytes, reason: str) -> str:
    if not body.strip(b" \t\r\n"):
        return "the body is empty"
    if body.startswith(b"\xef\xbb\xbf"):
        return "the body begins with a byte order mark"
    if "truncated" in reason:
        return "the body is not JSON: it ends too early, or a string in it is broken"
    return "the body is not JSON: " + reason.removeprefix("JSON is malformed: ")


def _check_structure(body: bytes, value: Any) -> None:
    """Raises Invalid for JSON that decodes and cannot be kept exactly: too deep, members that are named
    twice, integers beyond 64 bits.

    A rule that these bytes cannot break is not looked at: to walk a body takes several times as long as to
    decode it.
    """
    if _LONG_INTEGER in body.translate(_DIGITS_ALIKE):
        _check_integers(value)
    elif body.count(b"[") + body.count(b"{") > JSON_DEPTH_MAX:
        _check_depth(value)
    # Of a member that is named twice the decoder keeps one, so what it read is written with fewer colons. In
    # a string a colon stays one, unless it was escaped.
    colons = body.count(b":")
    if colons > 1:
        again = _encode(value)
        is_escaped = b"\\u003a" in body or b"\\u003A" in body
        if (is_escaped or colons != again.count(b":")) and _members(body) != _members(again):
            raise Invalid("an object names a member twice")


def _check_depth(value: Any) -> None:
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(JSON_DEPTH_MAX - 1):
        level = [inner for outer in level for inner in _inside(outer) if inner and type(inner) in _CONTAINERS]
        if not level:
            return
    if any(type(inner) in _CONTAINERS for outer in level for inner in _inside(outer)):
        raise _too_deep()


def _inside(container: Any) -> Iterable[Any]:
    return container.values() if type(container) is dict else container


def _check_integers(value: Any) -> None:
    """And how deep they stand, which is told where an integer that does not fit stands deeper."""
    depth = 0
    level: list[Any] = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is int and not INTEGER_MIN <= item <= INTEGER_MAX:
                path = _path_of_large_integer("", value)
                raise Invalid("an integer does not fit into 64 bits", field=path or None)
        if depth == JSON_DEPTH_MAX and any(type(item) in _CONTAINERS for item in below):
            raise _too_deep()
        level = below


def _members(text: bytes) -> int:
    """How many members the objects of a JSON text have: its colons outside strings."""
    outside = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    return b"".join(outside).count(b":")


def _path_of_large_integer(path: str, value: Any) -> str | None:
    """Where the first one stands; None where there is none."""
    if type(value) is int:
        return None if INTEGER_MIN <= value <= INTEGER_MAX else path
    inner: Iterable[tuple[str, Any]] = ()
    if type(value) is dict:
        inner = ((f"{path}.{name}" if path else name, item) for name, item in value.items())
    elif type(value) is list:
        inner = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    return next(
        (found for at, item in inner if (found := _path_of_large_integer(at, item)) is not None), None
    )


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"a body holds at most {bytes_max} bytes")


def _too_deep() -> Invalid:
    return Invalid(f"JSON is nested deeper than {JSON_DEPTH_MAX} levels")
