"""What a body gets: the field and the rule it breaks, and nothing written."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from engines.api import body as limits
from engines.codec import encode_json, escaped_bytes
from engines.core.records import RECORD_BYTES_MAX
from engines.errors import TooLarge
from tests.api.client import Client
from tests.api.serving import wire
from tests.servers.lab import LabServer

BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the body is empty"),
    "white space": (b" \r\n\t", "the body is empty"),
    "half an object": (b'{"content": "a"', "ends too early"),
    "a byte order mark": (b'\xef\xbb\xbf{"content": "a"}', "byte order mark"),
    "text behind it": (b'{"content": "a"} {"content": "b"}', "trailing"),
    "a comma too many": (b'{"content": "a",}', "not JSON"),
    "single quotes": (b"{'content': 'a'}", "not JSON"),
    "NaN": (b'{"content": NaN}', "not JSON"),
    "Infinity": (b'{"content": -Infinity}', "not JSON"),
    "a leading zero": (b'{"content": 01}', "not JSON"),
    "a comment": (b'{"content": "a" /* note */}', "not JSON"),
    "bytes that are not UTF-8": (b'{"content": "\xff\xfe"}', "UTF-8"),
    "half a surrogate pair": (b'{"content": "\\ud800"}', "string in it is broken"),
    "a control character": (b'{"content": "\x01"}', "not JSON"),
    "UTF-16": ('{"content": "a"}'.encode("utf-16"), "not"),
    "a member named twice": (b'{"content": "a", "title": "b", "content": "c"}', "names a member twice"),
    "a member named twice inside": (
        b'{"content": {"a": 1, "a": 2}, "content_type": "json"}',
        "names a member twice",
    ),
    "a member named twice, a colon beside it escaped": (b'{"content": "\\u003a", "content": ":"}', "twice"),
    "a member named twice, another colon escaped": (
        b'{"content": "\\u003A", "tags": [], "tags": []}',
        "twice",
    ),
    "a member named twice, what is dropped full of colons": (
        b'{"content": "\\\\", "title": "\\":{:", "title": "\\u003a\\u003a\\u003a"}',
        "twice",
    ),
    "a member named twice by an escape": (b'{"content": "a", "titl\\u0065": "b", "title": "c"}', "twice"),
}


@pytest.mark.parametrize(("data", "detail"), BROKEN.values(), ids=BROKEN)
async def test_a_body_that_is_not_json_is_400_and_says_why(member: Client, data: bytes, detail: str) -> None:
    answer = await member("POST", "/notes", data=data)
    assert detail in answer.problem(400, "Invalid")["detail"]


WRONG: dict[str, tuple[Any, str | None, str]] = {
    "an array": ([], None, "expected an object, got an array"),
    "null": (None, None, "expected an object, got null"),
    "a string": ("a", None, "expected an object, got a string"),
    "no content": ({"title": "a"}, "content", "required"),
    "an unknown member": ({"content": "a", "colour": 1}, "colour", "no such member"),
    "an unknown member inside": (
        {"content": "a", "source": {"created_by": "user", "mood": 1}},
        "source.mood",
        "no such member",
    ),
    "a number for a title": ({"content": "a", "title": 5}, "title", "expected a string, got an integer"),
    "null for a title": ({"content": "a", "title": None}, "title", "expected a string, got null"),
    "a title too long": ({"content": "a", "title": "x" * 501}, "title", "at most 500 characters"),
    "a content type of none": (
        {"content": "a", "content_type": "html"},
        "content_type",
        'expected one of "json", "markdown", "text"',
    ),
    "tags that are a string": ({"content": "a", "tags": "b"}, "tags", "expected an array, got a string"),
    "an empty tag": ({"content": "a", "tags": ["b", ""]}, "tags[1]", "at least 1 character"),
    "too many tags": ({"content": "a", "tags": ["t"] * 51}, "tags", "at most 50 items"),
    "content that is no text": ({"content": {"a": 1}}, "content", "string"),
    "an integer of 65 bits": ({"content": 2**64, "content_type": "json"}, "content", "64 bits"),
    "an integer of 65 bits below zero": (
        {"content": {"a": [1, -(2**63) - 1]}, "content_type": "json"},
        "content.a[1]",
        "64 bits",
    ),
    "an integer of 400 digits": ({"content": 10**400, "content_type": "json"}, "content", "64 bits"),
}


@pytest.mark.parametrize(("body", "field", "detail"), WRONG.values(), ids=WRONG)
async def test_a_body_that_breaks_a_rule_is_400_with_the_field_and_the_rule(
    member: Client, body: Any, field: str | None, detail: str
) -> None:
    answer = await member("POST", "/notes", data=json.dumps(body).encode())
    assert detail in answer.problem(400, "Invalid", field)["detail"]


async def test_a_value_of_none_is_told_those_that_there_are_wherever_it_stands(member: Client) -> None:
    config = {"rules": [{"action": "a", "gates": ["kill_switch", "budgt"]}]}
    answer = await member("PUT", "/gates/config/chat", data=json.dumps(config).encode())
    problem = answer.problem(400, "Invalid", "rules[0].gates[1]")
    assert problem["detail"].startswith('expected one of "budget", "budget_room", "firearms",')
    answer = await member("GET", "/events?order=newest")
    assert answer.problem(400, "Invalid", "order")["detail"] == 'expected one of "asc", "desc"'


async def test_a_number_beyond_every_float_is_400(member: Client) -> None:
    answer = await member("POST", "/notes", data=b'{"content": [1e999], "content_type": "json"}')
    assert "kept exactly" in answer.problem(400, "Invalid", "content[0]")["detail"]
    events = b'{"events": [{"event_type": "a", "payload": {"b": -1e999}}]}'
    answer = await member("POST", "/events", data=events)
    answer.problem(400, "Invalid", "events[0].payload[...]")


async def test_a_refused_body_writes_nothing(member: Client, fresh: Iterator[str]) -> None:
    session = next(fresh)
    for data in (b'{"value": 1, "value": 2}', b'{"value": 1, "x": 2}', b'{"value": 1', b'{"value": NaN}'):
        (await member("PUT", f"/memory/{session}/k", data=data)).problem(
            400, "Invalid", "x" if b"x" in data else None
        )
    assert (await member("GET", f"/memory/{session}")).json["items"] == []


async def test_patterns_are_told_as_people_write_them(admin: Client) -> None:
    body = {"tenant_id": "T", "name": "a", "mode": "lab", "default_surface_id": "chat"}
    answer = await admin("POST", "/tenants", body)
    assert "^t_[a-z0-9_-]+$" in answer.problem(400, "Invalid", "tenant_id")["detail"]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [66, 1_000, 100_000])
async def test_json_nested_too_deep_is_400_whatever_its_depth(
    member: Client, opening: str, depth: int
) -> None:
    closing = "]" if opening == "[" else "}"
    content = opening * depth + "1" + closing * depth
    data = f'{{"content": {content}, "content_type": "json"}}'.encode()
    detail = (await member("POST", "/notes", data=data)).problem(400, "Invalid")["detail"]
    assert detail == "JSON is nested deeper than 64 levels"


async def test_json_nested_to_the_limit_is_kept(member: Client) -> None:
    # The body's own object is the first level.
    data = f'{{"content": {"[" * 63}{"]" * 63}, "content_type": "json"}}'.encode()
    assert (await member("POST", "/notes", data=data)).status == 201
    beside = f'{{"content": [{"[" * 62}{"]" * 62}, {{}}, []], "content_type": "json"}}'.encode()
    assert (await member("POST", "/notes", data=beside)).status == 201
    deeper = f'{{"content": {"[" * 64}{"]" * 64}, "content_type": "json"}}'.encode()
    (await member("POST", "/notes", data=deeper)).problem(400, "Invalid")


async def test_brackets_and_colons_inside_strings_are_text(member: Client) -> None:
    content = {"a": '"{[:' * 100, '\\":[[': "\\" * 99 + '"', "c": ["]" * 200, ":" * 70]}
    answer = await member("POST", "/notes", {"content": content, "content_type": "json"})
    assert (answer.status, answer.json["content"]) == (201, content)


async def test_colons_inside_strings_are_text_escaped_or_not(member: Client) -> None:
    content = rb'{"a:": ":", "b\u003a": "\u003A\\", "c\\": "\\u003a:\"", "d\\": "\u003a"}'
    answer = await member("POST", "/notes", data=b'{"content_type": "json", "content": %s}' % content)
    assert (answer.status, answer.json["content"]) == (201, json.loads(content))


@pytest.mark.parametrize(
    "content",
    [
        b"[" + b",".join([b"0"] * 100_000) + b"]",
        b'{"a":":[{' + b"12345678" * 2 + b'"}',
        b'"' + b"[" * 64 + b'"',
    ],
    ids=["numbers", "text", "brackets"],
)
def test_a_body_that_can_break_no_rule_is_not_walked_through(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes several times as long as to decode it, and keeps everybody waiting."""
    walked: list[Any] = []
    monkeypatch.setattr(limits, "_check_integers", walked.append)
    monkeypatch.setattr(limits, "_check_depth", walked.append)
    body = b'{"content":' + content + b"}"
    assert limits.decode_body(body, lambda _: Any) == json.loads(body)
    assert bool(walked) == (content.count(b"[") > 62)


async def test_numbers_and_text_come_back_as_they_were_sent(member: Client, fresh: Iterator[str]) -> None:
    value = [2**64 - 1, -(2**63), 0.1, 1e-300, "\u0000é\U0001f600\u2028", True, None, {"": []}]
    path = f"/memory/{next(fresh)}/k"
    assert (await member("PUT", path, {"value": value})).status == 201
    assert (await member("GET", path)).json["value"] == value


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "application/json; charset=latin-1",
        "application/json5",
        "application/problem+json",
        "",
    ],
)
async def test_another_media_type_is_415(member: Client, media_type: str) -> None:
    answer = await member("POST", "/notes", data=b'{"content": "a"}', Content_Type=media_type)
    answer.problem(415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
async def test_json_in_utf_8_is_the_media_type(member: Client, media_type: str) -> None:
    answer = await member("POST", "/notes", data=b'{"content": "a"}', Content_Type=media_type)
    assert answer.status == 201


async def test_a_body_at_its_limit_is_read_and_one_byte_more_is_413(member: Client) -> None:
    filler = b" " * (limits.BODY_BYTES_MAX - len(b'{"content": "a"}'))
    assert (await member("POST", "/notes", data=b'{"content": "a"}' + filler)).status == 201
    answer = await member("POST", "/notes", data=b'{"content": "a"}' + filler + b" ")
    answer.problem(413, "TooLarge")
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "item",
    [b"0", b"[]", b"{}", b'""', b'{"a":0}', b'"\\":"'],
    ids=["0", "[]", "{}", "text", "members", "quotes"],
)
def test_a_body_that_no_record_holds_is_refused_unread(item: bytes) -> None:
    with pytest.raises(TooLarge) as refusal:
        limits.check_storable(b'{"value": [%s]}' % b",".join([item] * (900_000 // (len(item) + 1))))
    assert str(refusal.value).startswith(f"a record holds at most {RECORD_BYTES_MAX} bytes")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/notes", "content"),
        ("PUT", "/notes/n1", "content"),
        ("PUT", "/memory/s1/k", "value"),
        ("PUT", "/tables/t/p/s", "value"),
        ("PUT", "/blackboard/r1/k", "value"),
        ("PUT", "/agent-memory/stm/k", "value"),
        ("POST", "/graphs", "json_blob"),
        ("PUT", "/graphs/g", "json_blob"),
    ],
)
async def test_where_one_record_holds_a_body_its_size_comes_before_its_members(
    member: Client, method: str, path: str, name: str
) -> None:
    data = b'{"colour": 1, "%s": [%s]}' % (name.encode(), b",".join([b"0"] * 400_000))
    (await member(method, path, data=data)).problem(413, "TooLarge")
    (await member(method, path, data=b'{"colour": 1, "%s": [0]}' % name.encode())).problem(
        400, "Invalid", "colour"
    )


@pytest.mark.parametrize(
    "item", ["0", "[]", "{}", '""', '{"a":0}', '"\\":"', '"\\\\"', '"\\u0022\\u002c"', "1.0000"]
)
def test_a_body_is_refused_unread_only_if_what_it_says_is_too_large_for_a_record(item: str) -> None:
    """Whatever is said and however it is written: white space, escapes and long numbers are none of it."""
    for pad in ("", " " * 3):
        size = escaped_bytes(encode_json(json.loads(item))) - 1
        for count in {40_000, 65_000, 87_000, 130_000, 200_000, RECORD_BYTES_MAX // size}:
            said = "[" + f",{pad}".join([item] * count) + "]"
            if escaped_bytes(encode_json(json.loads(said))) <= RECORD_BYTES_MAX:
                limits.check_storable(f'{{"value": {said}}}'.encode())


def head(lab: LabServer, *fields: str, path: str = "/notes", method: str = "POST") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: a",
        f"authorization: Bearer {lab.token('member')}",
        "content-type: application/json",
        *fields,
    ]
    return "\r\n".join((*lines, "", "")).encode()


async def test_a_body_announced_too_large_is_413_before_it_is_sent(lab: LabServer, lab_port: int) -> None:
    async with wire(lab_port) as line:
        await line.send(head(lab, "content-length: 1000000000", "expect: 100-continue"))
        status, fields, body = await line.answer()
        assert (status, fields["connection"]) == (413, "close")
        assert json.loads(body)["code"] == "TooLarge"


async def test_a_chunked_body_is_413_once_it_is_too_large(lab: LabServer, lab_port: int) -> None:
    async with wire(lab_port) as line:
        await line.send(head(lab, "transfer-encoding: chunked"))
        for _ in range(17):
            await line.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert (await line.answer())[0] == 413


async def test_a_chunked_body_is_read_like_any_other(lab: LabServer, lab_port: int) -> None:
    async with wire(lab_port) as line:
        await line.send(head(lab, "transfer-encoding: chunked"))
        for piece in (b'{"con', b'tent": ', b'"a"}'):
            await line.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            await asyncio.sleep(0.01)
        await line.send(b"0\r\n\r\n")
        assert (await line.answer())[0] == 201


async def test_an_expected_continue_is_given_and_then_the_body_read(lab: LabServer, lab_port: int) -> None:
    async with wire(lab_port) as line:
        await line.send(head(lab, "content-length: 16", "expect: 100-continue"))
        assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(b'{"content": "a"}')
        assert (await line.answer())[0] == 201


async def test_a_body_that_stalls_is_408_and_the_end_of_the_connection(lab: LabServer, lab_port: int) -> None:
    async with wire(lab_port) as line:
        await line.send(head(lab, "content-length: 16") + b'{"content')
        status, fields, body = await line.answer(limits.STALL_TIMEOUT_S + 5)
        assert (status, fields["connection"], json.loads(body)["code"]) == (408, "close", "RequestTimeout")
        assert await line.rest() == b""


async def test_a_call_without_a_body_takes_none(member: Client, fresh: Iterator[str]) -> None:
    path = f"/memory/{next(fresh)}/k"
    assert (await member("PUT", path, {"value": 1})).status == 201
    (await member("DELETE", path, {"value": 1})).problem(400, "Invalid")
    (await member("GET", path, data=b"x")).problem(400, "Invalid")
    assert (await member("DELETE", path, {})).status == 204  # what some clients send for nothing
