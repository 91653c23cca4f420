"""Ids in paths: judged on the bytes as they came, and never made into another path."""

import pytest

from tests.contract.cast import Tenant, made
from tests.contract.wire import problem

LONGEST_ID = "a" * 128


GOOD_IDS = ["a", "A9", "0", "a.b_c~d:e@f|g+h-i", LONGEST_ID]
BAD_IDS = {
    "dot": ".a",
    "dots": "..",
    "dash": "-a",
    "space": "a%20b",
    "slash": "a%2Fb",
    "backslash": "a%5Cb",
    "nul": "a%00b",
    "newline_at_the_end": "a%0A",
    "exclamation": "a!b",
    "percent": "a%25b",
    "comma": "a,b",
    "quote": "a%22b",
    "semicolon": "a;b",
    "too_long": LONGEST_ID + "a",
    "utf8": "a%C3%A9",
    "not_utf8": "a%FF",
    "overlong_slash": "a%C0%AFb",
    "star": "a*",
    "equals": "a=b",
    "dollar": "$a",
    "hash": "a%23b",
    "question": "a%3Fb",
    "delete": "a%7F",
    "fullwidth": "%EF%BC%A1",
    "doubly_encoded": "a%252Fb",
    "bad_percent": "a%zz",
    "cut_percent": "a%4",
}


@pytest.mark.parametrize("good", GOOD_IDS)
def test_a_path_id_of_the_pattern_is_accepted_percent_encoded_or_not(tenant: Tenant, good: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in good.encode())
    reply = tenant["member"].put(f"/tables/ids/p/{good}", {"value": 1})
    assert reply.status in (200, 201), reply
    again = tenant["member"].get(f"/tables/ids/p/{encoded}")
    assert (again.status, again.body["sk"]) == (200, good)


PATHS_WITH_IDS = [
    ("GET", "/tables/{}/p/s"),
    ("PUT", "/tables/t/{}/s"),
    ("DELETE", "/tables/t/p/{}"),
    ("GET", "/tables/{}/p"),
    ("PUT", "/memory/{}/k"),
    ("GET", "/memory/s/{}"),
    ("GET", "/memory/{}"),
    ("PUT", "/blackboard/{}/k"),
    ("GET", "/blackboard/r/{}/versions"),
    ("GET", "/realtime/thread/{}/members"),
    ("PUT", "/realtime/thread/t/members/{}"),
    ("GET", "/sessions/{}"),
    ("POST", "/sessions/{}/messages"),
    ("GET", "/sessions/{}/checkpoints"),
    ("GET", "/checkpoints/{}"),
    ("POST", "/checkpoints/{}/fork"),
    ("GET", "/traces/{}"),
    ("PUT", "/agent-memory/episodes/{}"),
    ("GET", "/agent-memory/{}"),
    ("POST", "/streams/{}/events"),
    ("GET", "/streams/{}/events"),
    ("GET", "/streams/{}/stream"),
    ("GET", "/budget/reservations/{}"),
    ("POST", "/budget/reservations/{}/release"),
    ("GET", "/notes/{}"),
    ("PUT", "/notes/{}"),
    ("GET", "/projects/{}"),
    ("GET", "/events/{}"),
]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize(("method", "template"), PATHS_WITH_IDS)
def test_a_path_id_of_another_pattern_is_400(tenant: Tenant, method: str, template: str, bad: str) -> None:
    body = {"value": 1} if method in ("PUT", "POST") else None
    reply = tenant["owner"].call(method, template.format(BAD_IDS[bad]), body)
    problem(reply, 400, "Invalid")


@pytest.fixture(scope="module")
def session_id(tenant: Tenant) -> str:
    """A session with one checkpoint and one trace."""
    member = tenant["member"]
    session_id = str(made(member.post("/sessions", {})).body["session_id"])
    made(member.post(f"/sessions/{session_id}/checkpoints", {"state": 1}))
    turn = {"name": "t", "started_at": "2026-11-21T12:00:00Z", "ended_at": "2026-11-21T12:00:00Z"}
    made(member.post(f"/sessions/{session_id}/traces", turn))
    for path in (f"/checkpoints/{session_id}.1", f"/traces/{session_id}.1"):
        assert member.get(path).status == 200
    return session_id


@pytest.mark.parametrize(
    "end",
    ["", ".", ".0", ".01", ".-1", ".1.", ".+1", ".1e0", ".1.1", "..1", ".2", ".00000000001", "." + "9" * 10],
)
def test_an_id_that_no_checkpoint_or_trace_has_is_404(tenant: Tenant, session_id: str, end: str) -> None:
    for path in (f"/checkpoints/{session_id}{end}", f"/traces/{session_id}{end}"):
        problem(tenant["member"].get(path), 404, "NotFound")
    problem(tenant["member"].post(f"/checkpoints/{session_id}{end}/fork", {}), 404, "NotFound")


@pytest.mark.parametrize(
    "path",
    [
        "/tables/t/../s",
        "/tables/./p/s",
        "/tables//p/s",
        "//me",
        "/me/",
        "/tables/t/p/s/",
        "/./me",
        "/notes/../me",
    ],
)
def test_a_path_is_never_normalised_into_another(tenant: Tenant, path: str) -> None:
    assert tenant["member"].get(path).status in (400, 404)
