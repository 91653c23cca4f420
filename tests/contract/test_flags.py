"""Flags over OFREP (open-feature/protocol, service/openapi.yaml 0.3.0): statuses, bodies, ETags, who may."""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.contract.cast import ADOPTION_S, ROLES, Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply

PATH = "/ofrep/v1/evaluate/flags"
BOOLEAN = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
PRO = {"if": [{"==": [{"var": "plan"}, "pro"]}, "on", None]}


def define(caller: Caller, **members: Any) -> str:
    """A new flag; its key."""
    key = fresh("flag")
    made(caller.post("/flags", {"id": key, "json_blob": {**BOOLEAN, **members}}))
    return key


def evaluate(caller: Caller, key: str, **said: Any) -> Reply:
    return caller.post(f"{PATH}/{key}", {"context": said})


def failed(reply: Reply, status: int, code: str, key: str | None = None) -> None:
    """It is OFREP's error and no problem document."""
    assert reply.status == status, reply
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["X-Request-Id"]
    body = reply.body
    assert body.pop("errorCode") == code
    assert body.pop("errorDetails")
    assert body == ({} if key is None else {"key": key})


class TestOne:
    @pytest.mark.parametrize(
        ("members", "said", "answer"),
        [
            ({}, {}, {"reason": "STATIC", "variant": "off", "value": False}),
            (
                {"targeting": PRO},
                {"plan": "pro"},
                {"reason": "TARGETING_MATCH", "variant": "on", "value": True},
            ),
            ({"targeting": PRO}, {"plan": "free"}, {"reason": "DEFAULT", "variant": "off", "value": False}),
            ({"state": "DISABLED"}, {}, {"reason": "DISABLED"}),
            ({"defaultVariant": None}, {}, {"reason": "DEFAULT"}),
            (
                {"variants": {"a": {"deep": [1, None]}}, "defaultVariant": "a", "metadata": {"owner": "web"}},
                {},
                {
                    "reason": "STATIC",
                    "variant": "a",
                    "value": {"deep": [1, None]},
                    "metadata": {"owner": "web"},
                },
            ),
            (
                {"variants": {"a": 0}, "defaultVariant": "a"},
                {},
                {"reason": "STATIC", "variant": "a", "value": 0},
            ),
            (
                {"variants": {"a": ""}, "defaultVariant": "a"},
                {},
                {"reason": "STATIC", "variant": "a", "value": ""},
            ),
        ],
    )
    def test_an_evaluation(self, tenant: Tenant, members: Any, said: Any, answer: Any) -> None:
        key = define(tenant["member"], **members)
        reply = evaluate(tenant["viewer"], key, targetingKey="ada", **said)
        assert reply.status == 200, reply
        assert reply.body == {"key": key, **answer}
        assert reply.headers["Content-Type"] == "application/json"

    def test_a_context_may_be_left_out(self, tenant: Tenant) -> None:
        key = define(tenant["member"])
        bodies: list[dict[str, Any]] = [{}, {"context": {}}]
        for body in bodies:
            assert tenant["viewer"].post(f"{PATH}/{key}", body).body["value"] is False

    def test_a_flag_that_is_not_there(self, tenant: Tenant) -> None:
        failed(evaluate(tenant["viewer"], "nobody"), 404, "FLAG_NOT_FOUND", "nobody")

    def test_a_flag_of_another_tenant_is_not_there_either(self, cast: Cast, tenant: Tenant) -> None:
        key = define(tenant["member"])
        other = cast.tenant("viewer")["viewer"]
        failed(evaluate(other, key), 404, "FLAG_NOT_FOUND", key)
        assert other.post(PATH, {}).body == {"flags": []}

    def test_targeting_that_names_no_variant(self, tenant: Tenant) -> None:
        key = define(tenant["member"], targeting={"if": [True, "gone"]})
        failed(evaluate(tenant["viewer"], key), 400, "GENERAL", key)

    def test_a_change_is_in_force_within_a_second(self, tenant: Tenant) -> None:
        member = tenant["member"]
        key = define(member)
        assert evaluate(member, key).body["value"] is False
        etag = str(member.get(f"/flags/{key}").etag)
        blob = {**BOOLEAN, "defaultVariant": "on"}
        assert member.put(f"/flags/{key}", {"json_blob": blob}, if_match=etag).status == 200
        changed = time.monotonic()
        until(lambda: evaluate(member, key).body.get("value") is True)
        assert time.monotonic() - changed < ADOPTION_S


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "PARSE_ERROR"),
            (b"{", "PARSE_ERROR"),
            (b"[]", "PARSE_ERROR"),
            ({"context": 7}, "INVALID_CONTEXT"),
            ({"context": None}, "INVALID_CONTEXT"),
            ({"context": {"targetingKey": 7}}, "INVALID_CONTEXT"),
            ({"context": {}, "extra": 1}, "GENERAL"),
        ],
    )
    def test_a_malformed_request(self, tenant: Tenant, body: Any, code: str) -> None:
        failed(tenant["viewer"].post(f"{PATH}/key", body), 400, code, "key")
        failed(tenant["viewer"].post(PATH, body), 400, code)

    def test_no_credential_and_a_wrong_one(self, cast: Cast) -> None:
        for caller in (cast.nobody, Caller(cast.url, "nonsense", {})):
            for path, key in ((f"{PATH}/key", "key"), (PATH, None)):
                reply = caller.post(path, {})
                failed(reply, 401, "GENERAL", key)
                assert reply.headers["WWW-Authenticate"]

    def test_no_membership_and_another_identity(self, cast: Cast, tenant: Tenant) -> None:
        failed(cast.outsider.post(PATH, {}), 403, "GENERAL")
        failed(tenant["viewer"].post(f"{PATH}/key", {}, x_tenant_id="t_demo"), 403, "GENERAL", "key")

    def test_a_context_past_its_size(self, tenant: Tenant) -> None:
        body = {"context": {"x": "y" * 65 * 1024}}
        failed(tenant["viewer"].post(f"{PATH}/key", body), 413, "GENERAL", "key")

    def test_another_media_type(self, tenant: Tenant) -> None:
        reply = tenant["viewer"].post(f"{PATH}/key", b"{}", content_type="text/plain")
        failed(reply, 415, "GENERAL", "key")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_another_method(self, tenant: Tenant, method: str) -> None:
        reply = tenant["viewer"].call(method, PATH)
        failed(reply, 405, "GENERAL")
        assert reply.headers["Allow"] == "POST"

    @pytest.mark.parametrize(
        "path", ["/ofrep/v1/configuration", "/ofrep/v2/evaluate/flags", "/ofrep/v1/a%20b"]
    )
    def test_what_the_protocol_does_not_have_here(self, tenant: Tenant, path: str) -> None:
        reply = tenant["viewer"].post(path, {})
        failed(reply, 400 if "%20" in path else 404, "GENERAL")

    def test_a_key_that_no_flag_can_have(self, tenant: Tenant) -> None:
        failed(tenant["viewer"].post(f"{PATH}/a%2Fb", {}), 400, "GENERAL", "a/b")

    def test_no_route_for_flags(self, cast: Cast) -> None:
        tenant = cast.tenant("member")
        key = define(tenant["member"])
        route = cast.system_admin.get("/routes/feature_flags/resolve")
        removed = cast.system_admin.delete("/routes/feature_flags", if_match=str(route.etag))
        assert removed.status == 204
        try:
            until(lambda: evaluate(tenant["member"], key).status == 503)
            failed(evaluate(tenant["member"], key), 503, "GENERAL", key)
            failed(tenant["member"].post(PATH, {}), 503, "GENERAL")
        finally:
            back = {"backend_id": route.body["route"]["backend_id"]}
            made(cast.system_admin.put("/routes/feature_flags", back, if_none_match="*"))
        until(lambda: evaluate(tenant["member"], key).status == 200)

    def test_a_definition_that_could_not_be_evaluated_is_a_problem_document(self, tenant: Tenant) -> None:
        blob = {**BOOLEAN, "targeting": {"==": [1, {"nope": 1}]}}
        reply = tenant["member"].post("/flags", {"json_blob": blob})
        assert reply.status == 400
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.body["field"] == "json_blob.targeting.==[1]"


class TestAll:
    def test_every_flag_of_the_surface_by_key(self, cast: Cast) -> None:
        tenant = cast.tenant("member", "viewer")
        keys = [define(tenant["member"], targeting=PRO), define(tenant["member"], state="DISABLED")]
        broken = define(tenant["member"], targeting={"if": [True, "gone"]})
        reply = tenant["viewer"].post(PATH, {"context": {"plan": "pro"}})
        assert reply.status == 200, reply
        assert set(reply.body) == {"flags"}
        flags = {flag["key"]: flag for flag in reply.body["flags"]}
        assert list(flags) == sorted(flags) == sorted([*keys, broken])
        assert flags[keys[0]] == {
            "key": keys[0],
            "reason": "TARGETING_MATCH",
            "variant": "on",
            "value": True,
        }
        assert flags[keys[1]] == {"key": keys[1], "reason": "DISABLED"}
        assert flags[broken]["errorCode"] == "GENERAL"
        assert set(flags[broken]) == {"key", "errorCode", "errorDetails"}

    def test_an_etag_stands_for_the_whole_answer(self, cast: Cast) -> None:
        tenant = cast.tenant("member", "viewer")
        key = define(tenant["member"], targeting=PRO)
        pro, free = {"context": {"plan": "pro"}}, {"context": {"plan": "free"}}
        first = tenant["viewer"].post(PATH, pro)
        assert first.etag
        for known in (first.etag, f"W/{first.etag}", f'"other", {first.etag}', "*"):
            again = tenant["viewer"].post(PATH, pro, if_none_match=known)
            assert (again.status, again.content, again.etag) == (304, b"", first.etag)
        assert tenant["viewer"].post(PATH, free, if_none_match=first.etag).status == 200
        assert tenant["viewer"].post(PATH, pro, if_none_match='"other"').status == 200
        etag = str(tenant["member"].get(f"/flags/{key}").etag)
        tenant["member"].put(f"/flags/{key}", {"json_blob": {**BOOLEAN, "state": "DISABLED"}}, if_match=etag)
        until(lambda: tenant["viewer"].post(PATH, pro, if_none_match=str(first.etag)).status == 200)
        changed = tenant["viewer"].post(PATH, pro)
        assert changed.body == {"flags": [{"key": key, "reason": "DISABLED"}]}
        assert changed.etag != first.etag

    def test_a_connection_goes_on_after_a_304(self, cast: Cast) -> None:
        """A 304 that promised a body would leave the next answer on the connection unread."""
        tenant = cast.tenant("viewer")
        viewer = tenant["viewer"]
        connection = http.client.HTTPConnection(urlsplit(cast.url).netloc, timeout=10)
        headers = {"Authorization": f"Bearer {viewer.credential}", "Content-Type": "application/json"}
        etag = ""
        for status in (200, 304, 304):
            connection.request("POST", PATH, "{}", {**headers, "If-None-Match": etag or '"none"'})
            reply = connection.getresponse()
            reply.read()
            assert reply.status == status
            assert (status == 304) is (reply.headers["Content-Length"] is None)
            etag = reply.headers["ETag"]
        connection.close()

    def test_what_an_event_stream_would_tell_is_taken(self, tenant: Tenant) -> None:
        query = "?flagConfigEtag=abc&flagConfigLastModified=1771622898"
        assert tenant["viewer"].post(PATH + query, {}).status == 200
        failed(tenant["viewer"].post(PATH + "?other=1", {}), 400, "GENERAL")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_evaluate(tenant: Tenant, role: str) -> None:
    key = define(tenant["member"])
    assert evaluate(tenant[role], key).status == 200
    assert tenant[role].post(PATH, {}).status == 200


def test_it_is_a_read_and_no_key_makes_a_repeat_of_one(tenant: Tenant) -> None:
    """An evaluation under an Idempotency-Key is evaluated each time: nothing of it is kept."""
    key = define(tenant["member"], targeting=PRO)
    name = fresh("key")
    for plan, value in (("pro", True), ("free", False)):
        reply = tenant["viewer"].post(f"{PATH}/{key}", {"context": {"plan": plan}}, idempotency_key=name)
        assert (reply.status, reply.replayed, reply.body["value"]) == (200, False, value)


def test_errors_are_no_secret_and_no_stack(tenant: Tenant) -> None:
    text = json.dumps(evaluate(tenant["viewer"], "nobody").body)
    assert "Traceback" not in text
    assert tenant.tenant_id not in text
