"""What a path and a query get, byte for byte."""

import json
from collections.abc import Iterator

import pytest

from engines.api.dispatch import Dispatch
from engines.api.endpoint import Endpoint, Sendable
from engines.api.reply import Reply
from engines.errors import MethodNotAllowed, NotFound
from tests.api.client import Client
from tests.api.serving import wire
from tests.servers.lab import LabServer

TRICKS = [
    b"/memory/s/..",
    b"/memory/../notes",
    b"/memory/s/%2e%2e",
    b"/memory/s/.hidden",
    b"/memory/s/%2F",
    b"/memory/s%2fk",
    b"/memory/s/a%2f..%2fb",
    b"/memory/s/%00",
    b"/memory/s/a%00",
    b"/memory/s/a%0a",
    b"/memory/s/a%0d%0a",
    b"/memory/s/a%20",
    b"/memory/s/%C3%A9",
    b"/memory/s/a%ff",
    b"/memory/s/a%",
    b"/memory/s/a%4",
    b"/memory/s/a%zz",
    b"/memory/s/a%5c",
    b"/memory/s/a;b",
    b"/memory/s/a'b",
    b"/memory/s/a*",
    b"/memory/s/a!b",
    b"/memory/s/$a",
    b"/memory/s/_a",
    b"/memory/s/-a",
    b"/memory/s/~a",
    b"/memory/s/",
    b"/memory//k",
    b"//memory/s/k",
    b"/memory/s//k",
    b"/notes/",
    b"/notes/.",
    b"/notes/n!u_owner!1",
    b"/notes/" + b"a" * 129,
    b"/%6eotes/%2e",
    b"*",
]


@pytest.mark.parametrize("path", TRICKS, ids=lambda path: path.decode("latin-1")[:40])
async def test_a_path_that_breaks_the_rule_for_segments_is_400(
    lab: LabServer, lab_port: int, path: bytes
) -> None:
    async with wire(lab_port) as line:
        token = lab.token("member").encode()
        await line.send(
            b"GET " + path + b" HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + token + b"\r\n\r\n"
        )
        status, fields, body = await line.answer()
        assert (status, fields["content-type"]) == (400, "application/problem+json")
        problem = json.loads(body)
        assert (problem["code"], problem["field"]) == ("Invalid", "path")


@pytest.mark.parametrize(
    "name",
    ["a", "A9._~:@|+-", "a" * 128, "%61%2D%7C", "9..", "a%2B", "t_other:n:1"],
)
async def test_every_id_within_the_rule_is_a_name(
    member: Client, lab_port: int, lab: LabServer, fresh: Iterator[str], name: str
) -> None:
    session = next(fresh)
    async with wire(lab_port) as line:
        head = (
            f"PUT /memory/{session}/{name} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {lab.token('member')}"
            "\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n"
        )
        await line.send(head.encode() + b'{"value":1}')
        assert (await line.answer())[0] == 201
    (item,) = (await member("GET", f"/memory/{session}")).json["items"]
    assert item["key"] == {"%61%2D%7C": "a-|", "a%2B": "a+"}.get(name, name)


async def test_a_path_of_129_characters_in_one_segment_is_400_and_of_128_is_not_found(member: Client) -> None:
    (await member("GET", "/notes/" + "a" * 128)).problem(404, "NotFound")
    (await member("GET", "/notes/" + "a" * 129)).problem(400, "Invalid", "path")


async def test_no_path_is_404(member: Client) -> None:
    for path in ("/", "/nothing", "/notes/a/b", "/objects/a", "/docs", "/schema", "/me/too"):
        (await member("GET", path)).problem(404, "NotFound")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.0", "limit"),
        ("limit=1e2", "limit"),
        ("limit=0x10", "limit"),
        ("limit=%D9%A5", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=10&limit=20", "limit"),
        ("order=up", "order"),
        ("order=ASC", "order"),
        ("after=", "after"),
        ("after=invented", "after"),
        ("after=" + "a" * 1025, "after"),
        ("after=a%00b", "after"),
        ("colour=blue", "colour"),
        ("limit", "query"),
        ("tag=%zz", "query"),
        ("tag=%ff", "query"),
        ("&".join(f"a{number}=1" for number in range(40)), "query"),
    ],
)
async def test_a_query_that_breaks_a_rule_is_400_with_the_parameter(
    lab: LabServer, lab_port: int, query: str, field: str
) -> None:
    async with wire(lab_port) as line:
        head = (
            f"GET /notes?{query} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {lab.token('member')}\r\n\r\n"
        )
        await line.send(head.encode())
        status, _, body = await line.answer()
        problem = json.loads(body)
        assert (status, problem["code"], problem["field"]) == (400, "Invalid", field)


async def test_a_call_without_parameters_takes_none(member: Client) -> None:
    (await member("GET", "/me?verbose=1")).problem(400, "Invalid", "verbose")


@pytest.mark.parametrize(
    "path", ["/notes", "/notes/a", "/me", "/memory/a/b", "/health/live", "/openapi.json"]
)
async def test_a_method_that_a_path_does_not_have_is_405_and_says_which_it_has(
    member: Client, path: str
) -> None:
    for method in ("OPTIONS", "HEAD", "TRACE", "PATCH", "PROPFIND"):
        answer = await member(method, path)
        assert answer.status == 405, (method, path)
        assert "GET" in answer.headers["Allow"].split(", ")
        if method != "HEAD":
            answer.problem(405, "MethodNotAllowed")


async def test_allow_names_every_method_of_the_path(member: Client) -> None:
    assert (await member("PATCH", "/notes/a")).headers["Allow"] == "DELETE, GET, PUT"
    assert (await member("DELETE", "/notes")).headers["Allow"] == "GET, POST"


async def test_every_reserved_kind_is_501_whatever_is_asked(member: Client, anyone: Client) -> None:
    for kind in ("pii_vault", "nexus", "tool_registry", "canvas_registry", "connector_execution"):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"):
            answer = await member(method, f"/reserved/{kind}", data=b"anything", Content_Type="text/plain")
            assert answer.problem(501, "Reserved")["resource_kind"] == kind
        assert (await member("HEAD", f"/reserved/{kind}")).status == 501
    (await anyone("GET", "/reserved/nexus")).problem(401, "Unauthenticated")


def endpoint(method: str, path: str) -> Endpoint:
    async def answer(_: object) -> Sendable:
        return Reply(200)

    return Endpoint(method=method, path=path, handler=answer, tag="t", summary="s", description="")


def test_a_literal_segment_goes_before_a_parameter_and_a_parameter_is_tried_after_it() -> None:
    paths = ("/a/{x}", "/a/b", "/a/b/c", "/a/{x}/d", "/{y}/b/e", "/{y}/{z}/f")
    dispatch = Dispatch(endpoint("GET", path) for path in paths)
    for path, template, parameters in (
        ("/a/b", "/a/b", {}),
        ("/a/c", "/a/{x}", {"x": "c"}),
        ("/a/b/c", "/a/b/c", {}),
        ("/a/b/d", "/a/{x}/d", {"x": "b"}),
        ("/a/b/e", "/{y}/b/e", {"y": "a"}),
        ("/a/b/f", "/{y}/{z}/f", {"y": "a", "z": "b"}),
    ):
        runner, found = dispatch.find("GET", path)
        assert (runner.endpoint.path, found) == (template, parameters)
    for path in ("/", "/a", "/a/b/c/d", "/x/y", "/{y}/b"):
        with pytest.raises(NotFound):
            dispatch.find("GET", path)
    with pytest.raises(MethodNotAllowed) as caught:
        dispatch.find("PUT", "/a/b")
    assert caught.value.allowed == ("GET",)
