"""Analytics and attribution over HTTP: item by item, by a contract, from a page; and links."""

from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply, exchange, problem

ORIGIN = "https://www.example.com"
TEXT = "text/plain;charset=UTF-8"


def view(number: int, **fields: Any) -> dict[str, Any]:
    return {"event_type": "page_view", "payload": {"n": number}, **fields}


def contract(tenant: Tenant, **fields: Any) -> dict[str, Any]:
    """A contract in force for a platform of its own."""
    blob = {
        "platform": fresh("p").lower(),
        "utm_template": {"utm_source": "newsletter", "utm_campaign": "{campaign}_{month}"},
        "allowed_hosts": ["www.example.com", "*.example.org", "example.com:8443"],
        **fields,
    }
    stored = made(tenant["member"].post("/attribution", {"json_blob": blob})).body
    return {**blob, "ref": {"id": stored["id"], "version": stored["version"]}}


class TestIngest:
    def test_one_event_or_several_are_taken_in_and_found_again(self, tenant: Tenant) -> None:
        member, session = tenant["member"], fresh("s")
        one = made(member.post("/analytics/events", view(0), x_session_id=session)).body
        assert (one["accepted"], one["refused"]) == (1, 0)
        many = made(
            member.post(
                "/analytics/events", {"events": [view(1, session_id=session, platform="web"), view(2)]}
            )
        ).body
        assert [event["status"] for event in many["events"]] == [201, 201]
        found = tenant["viewer"].items(f"/analytics/events?session_id={session}")
        assert [event["payload"]["n"] for event in found] == [0, 1]
        assert [event["cursor"] for event in found] == [
            one["events"][0]["cursor"],
            many["events"][0]["cursor"],
        ]
        on_spine = tenant["viewer"].get(f"/events/{found[1]['event_id']}").body
        assert (on_spine["event_type"], on_spine["payload"]["platform"]) == ("analytics", "web")
        for query in (
            "platform=web",
            "event_type=page_view",
            "surface_id=chat",
            "since=2020-01-01T00:00:00Z",
        ):
            path = f"/analytics/events?session_id={session}&{query}"
            assert [event["payload"]["n"] for event in tenant["viewer"].items(path)][-1] == 1

    def test_a_bad_event_is_refused_alone_and_by_field(self, tenant: Tenant) -> None:
        events = [view(0), view(1, platform="a b"), {"nobody": 1}, 7, view(4, utm_source=3), view(5)]
        reply = made(tenant["member"].post("/analytics/events", {"events": events}))
        assert [event["status"] for event in reply.body["events"]] == [201, 400, 400, 400, 400, 201]
        problems = [event.get("problem", {}) for event in reply.body["events"]]
        assert [found.get("field") for found in problems] == [
            *(None, "platform", "nobody", None, "utm_source", None)
        ]
        assert (reply.body["accepted"], reply.body["refused"]) == (2, 4)

    def test_where_nothing_is_taken_in_it_is_the_first_ones_problem(self, tenant: Tenant) -> None:
        member = tenant["member"]
        said = problem(member.post("/analytics/events", view(0, platform="a b")), 400, "Invalid")
        assert said["field"] == "platform"
        said = problem(
            member.post("/analytics/events", {"events": [view(0, run_id="/"), view(1, run_id="/")]}),
            400,
            "Invalid",
        )
        assert said["field"] == "events[0].run_id"
        large = view(0, payload={"text": "x" * 70_000})
        problem(member.post("/analytics/events", large), 413, "TooLarge")

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({"events": []}, 400, "events"),
            ({"events": [{}] * 1_001}, 413, "events"),
            ({"events": {}}, 400, "events"),
            ({"events": [], "more": 1}, 400, "more"),
            ([], 400, None),
            (b"{", 400, None),
        ],
    )
    def test_a_body_that_is_none(self, tenant: Tenant, body: Any, status: int, field: str | None) -> None:
        said = problem(tenant["member"].post("/analytics/events", body), status)
        assert said.get("field") == field

    def test_another_identity_is_a_mismatch_and_nothing_is_written(self, tenant: Tenant) -> None:
        session = fresh("s")
        events = [view(0, session_id=session), view(1, tenant_id="t_nobody")]
        said = problem(tenant["member"].post("/analytics/events", {"events": events}), 403, "ContextMismatch")
        assert said["field"] == "events[1].tenant_id"
        assert tenant["viewer"].items(f"/analytics/events?session_id={session}") == []

    def test_a_repeat_under_its_key_is_answered_as_at_first(self, tenant: Tenant) -> None:
        session, key = fresh("s"), fresh("k")
        body = {"events": [view(number, session_id=session) for number in range(5)] + [{"nobody": 1}]}
        first = made(tenant["member"].post("/analytics/events", body, idempotency_key=key))
        again = made(tenant["member"].post("/analytics/events", body, idempotency_key=key))
        assert not first.replayed
        assert again.replayed
        assert again.body == first.body
        assert len(tenant["viewer"].items(f"/analytics/events?session_id={session}")) == 5
        other = tenant["member"].post("/analytics/events", view(0), idempotency_key=key)
        problem(other, 409, "IdempotencyKeyReused")

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("session_id=%2F", "session_id"),
            ("event_type=Page", "event_type"),
            ("since=today", "since"),
            ("nobody=1", "nobody"),
            ("after=none", "after"),
            ("limit=0", "limit"),
        ],
    )
    def test_a_query_that_finds_nothing_ever_is_invalid(self, tenant: Tenant, query: str, field: str) -> None:
        assert problem(tenant["viewer"].get(f"/analytics/events?{query}"), 400)["field"] == field

    def test_the_index_says_how_far_it_has_come_and_is_made_anew(self, tenant: Tenant) -> None:
        status = tenant["viewer"].get("/analytics/index").body
        assert status["lag"] == status["head"] - status["position"]
        problem(tenant["member"].post("/analytics/index/rebuild"), 403, "Forbidden")
        assert tenant["admin"].post("/analytics/index/rebuild").status == 200

    def test_without_a_route_it_is_a_missing_route(self, cast: Cast) -> None:
        house = cast.tenant("member", "owner")
        system = cast.system_admin
        found = system.get("/routes/analytics_store/resolve")
        backend = found.body["route"]["backend_id"]
        assert system.delete("/routes/analytics_store", if_match=str(found.etag)).status == 204
        try:
            until(lambda: house["member"].get("/analytics/events").status == 503)
            for reply in (
                house["member"].get("/analytics/events"),
                house["member"].post("/analytics/events", view(0)),
            ):
                assert problem(reply, 503, "MissingRoute")["resource_kind"] == "analytics_store"
        finally:
            made(system.put("/routes/analytics_store", {"backend_id": backend}, if_none_match="*"))
        until(lambda: house["member"].get("/analytics/events").status == 200)


def guard(house: Tenant, *gates: str) -> None:
    """A rule of the tenant on chat: these gates guard taking events in."""
    rule = {"action": "analytics.ingest", "gates": gates}
    made(house["admin"].put("/gates/config/chat", {"rules": [rule]}))


def decisions(house: Tenant) -> list[dict[str, Any]]:
    """What the spine says was decided about taking events in."""
    return [event["payload"] for event in house["viewer"].items("/events?event_type=safety")]


class TestGates:
    @pytest.fixture
    def house(self, cast: Cast) -> Tenant:
        return cast.tenant("viewer", "member", "admin")

    def test_events_are_kept_with_what_the_gates_said_by_one_decision_a_request(self, house: Tenant) -> None:
        session = fresh("s")
        body = {"events": [view(number, session_id=session) for number in range(3)]}
        plain = made(house["member"].post("/analytics/events", body)).body
        assert not any("gate_status" in event for event in plain["events"])
        assert decisions(house) == []
        guard(house, "budget")
        guarded = made(house["member"].post("/analytics/events", body)).body
        assert [event["gate_status"] for event in guarded["events"]] == ["fail"] * 3
        assert (guarded["accepted"], guarded["refused"]) == (3, 0)
        found = house["viewer"].items(f"/analytics/events?session_id={session}")
        assert ["gate_status" in event for event in found] == [False] * 3 + [True] * 3
        assert {(event["gate_status"], event["gate"], event["gate_reason_code"]) for event in found[3:]} == {
            ("fail", "budget", "cost_not_told")
        }
        (payload,) = decisions(house)
        assert (payload["action"], payload["result"], payload["asked"]) == (
            "analytics.ingest",
            "block",
            {"events": 3},
        )

    def test_what_is_switched_off_is_kept_and_says_so(self, house: Tenant) -> None:
        made(house["admin"].put("/gates/kill-switch", {"engaged": True}))
        ingested = made(house["member"].post("/analytics/events", view(0))).body
        assert ingested["events"][0]["gate_status"] == "fail"
        assert decisions(house)[-1]["details"]["off"] == "everything"

    def test_a_repeat_under_its_key_is_decided_once(self, house: Tenant) -> None:
        guard(house, "kill_switch")
        first = made(house["member"].post("/analytics/events", view(0), idempotency_key="k"))
        made(house["admin"].put("/gates/kill-switch", {"engaged": True}))
        again = made(house["member"].post("/analytics/events", view(0), idempotency_key="k"))
        assert again.replayed
        assert again.body == first.body
        assert again.body["events"][0]["gate_status"] == "pass"
        assert len(decisions(house)) == 1

    def test_what_a_page_sends_is_judged_too(self, house: Tenant) -> None:
        guard(house, "kill_switch")
        key = {"user_id": house.users["viewer"], "role": "beacon", "origins": [ORIGIN]}
        secret = made(house["admin"].post("/keys", key)).body["key"]
        until(lambda: TestBeacon.preflight(house, secret, ORIGIN).status == 204)
        session = fresh("s")
        content = b'{"event_type":"page_view","session_id":"%s"}' % session.encode()
        assert TestBeacon.send(house, f"?key={secret}", content).status == 204
        (event,) = house["viewer"].items(f"/analytics/events?session_id={session}")
        assert event["gate_status"] == "pass"
        (decided,) = house["viewer"].items("/events?event_type=safety")
        assert (decided["user_id"], decided["payload"]["asked"]) == (house.users["viewer"], {"events": 1})


class TestAttribution:
    def test_values_are_validated_against_the_contract_in_force(self, tenant: Tenant) -> None:
        terms = contract(tenant, allowed_fields=["page_url"])
        platform, session = terms["platform"], fresh("s")
        events = [
            view(0, platform=platform, session_id=session, payload={}, utm_campaign="spring_11"),
            view(1, platform=platform, session_id=session, payload={}, utm_campaign="spring"),
            view(2, platform=platform, session_id=session, payload={}, utm_medium="email"),
            view(3, platform=platform, session_id=session, payload={}, referrer="https://example.com/"),
        ]
        reply = made(tenant["member"].post("/analytics/events", {"events": events}))
        fields = [event["problem"]["field"] for event in reply.body["events"][1:]]
        assert fields == ["utm_campaign", "utm_medium", "referrer"]
        (kept,) = tenant["viewer"].items(f"/analytics/events?session_id={session}")
        assert kept["contract"] == terms["ref"]

    def test_a_link_is_tagged_by_the_contract_and_leads_where_it_led(self, tenant: Tenant) -> None:
        terms = contract(tenant)
        body = {
            "url": "https://www.example.com/a%20b?x=1&utm_source=evil&UTM%5Fterm=2#top",
            "platform": terms["platform"],
            "values": {"campaign": "spring-sale", "month": "11"},
        }
        reply = tenant["viewer"].post("/attribution/tag-link", body)
        assert reply.status == 200, reply
        assert reply.body == {
            "url": "https://www.example.com/a%20b?x=1&utm_source=newsletter&utm_campaign=spring-sale_11#top",
            "platform": terms["platform"],
            "utm": {"utm_source": "newsletter", "utm_campaign": "spring-sale_11"},
            "contract": terms["ref"],
        }

    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.com/",
            "https://www.example.com.evil.com/",
            "https://www.example.com@evil.com/",
            "https://evil.com\\@www.example.com/",
            "https://www.example.com\\.evil.com/",
            "//www.example.com/",
            "javascript:alert(1)//www.example.com",
            "https:www.example.com",
            "https://www.example.com:444/",
            "https://www.example.com//evil.com",
            "https://www.example.com/\r\nSet-Cookie: a=b",
            "https://www.example.com/%0d%0aSet-Cookie:%20a=b",
            "https://www.example.com/%zz",
            "https://www.exämple.com/",
            "https://example.org/",
            "https://a.example.org.evil.com/",
            "https://%77ww.example.com/",
            " https://www.example.com/",
        ],
    )
    def test_a_link_that_leads_elsewhere_is_refused(self, tenant: Tenant, url: str) -> None:
        body = {
            "url": url,
            "platform": contract(tenant)["platform"],
            "values": {"campaign": "c", "month": "m"},
        }
        said = problem(tenant["viewer"].post("/attribution/tag-link", body), 400, "Invalid")
        assert said["field"] == "url"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"platform": "nobody"}, "platform"),
            ({"values": {"campaign": "c"}}, "values.month"),
            ({"values": {"campaign": "c", "month": "m", "more": "x"}}, "values.more"),
            ({"values": {"campaign": "c", "month": "a b"}}, "values.month"),
            ({"values": {"campaign": "a_b", "month": "m"}}, "utm_campaign"),
        ],
    )
    def test_what_the_contract_does_not_say_is_refused(
        self, tenant: Tenant, change: dict[str, Any], field: str
    ) -> None:
        body = {
            "url": "https://www.example.com/",
            "platform": contract(tenant)["platform"],
            "values": {"campaign": "c", "month": "m"},
        }
        reply = tenant["viewer"].post("/attribution/tag-link", body | change)
        assert problem(reply, 400, "Invalid")["field"] == field


class TestBeacon:
    @pytest.fixture
    def key(self, tenant: Tenant) -> str:
        body = {"user_id": tenant.users["viewer"], "role": "beacon", "origins": [ORIGIN]}
        reply = made(tenant["admin"].post("/keys", body))
        assert reply.body["origins"] == [ORIGIN]
        secret: str = reply.body["key"]
        until(lambda: self.preflight(tenant, secret, ORIGIN).status == 204)
        return secret

    @staticmethod
    def send(tenant: Tenant, query: str, content: bytes, **headers: str) -> Reply:
        sent = {"Content-Type": TEXT, "Origin": ORIGIN}
        sent |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        return exchange(
            tenant.cast.url,
            "POST",
            f"/analytics/beacon{query}",
            {name: value for name, value in sent.items() if value},
            content,
        )

    @staticmethod
    def preflight(tenant: Tenant, key: str, origin: str) -> Reply:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return exchange(tenant.cast.url, "OPTIONS", f"/analytics/beacon?key={key}", headers)

    def test_a_page_sends_events_and_its_browser_is_told_that_it_may(self, tenant: Tenant, key: str) -> None:
        session = fresh("s")
        reply = self.preflight(tenant, key, ORIGIN)
        assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert reply.headers["Access-Control-Allow-Methods"] == "POST"
        assert reply.headers["Access-Control-Allow-Headers"] == "content-type"
        assert "origin" in reply.headers["Vary"].lower()
        content = (
            b'{"events":[{"event_type":"page_view","session_id":"%s","payload":{"n":1}}]}' % session.encode()
        )
        for media_type in (TEXT, "text/plain", "application/json"):
            reply = self.send(tenant, f"?key={key}&surface_id=canvas", content, content_type=media_type)
            assert (reply.status, reply.content) == (204, b"")
            assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert reply.headers["Access-Control-Allow-Credentials"] == "true"
        found = tenant["viewer"].items(f"/analytics/events?session_id={session}")
        assert [(event["surface_id"], event["user_id"]) for event in found] == [
            ("canvas", tenant.users["viewer"])
        ] * 3

    @pytest.mark.parametrize(
        "origin",
        ["https://evil.com", "null", "https://www.example.com.evil.com", "", "http://www.example.com"],
    )
    def test_another_origin_or_none_is_refused(self, tenant: Tenant, key: str, origin: str) -> None:
        reply = self.send(tenant, f"?key={key}", b"{}", origin=origin)
        problem(reply, 403, "Forbidden")
        assert reply.headers["Access-Control-Allow-Origin"] is None
        reply = self.preflight(tenant, key, origin)
        problem(reply, 403, "Forbidden")

    def test_without_a_publishable_key_nobody_may(self, tenant: Tenant, key: str) -> None:
        token = tenant.cast.token(tenant.users["member"])
        for query in ("", "?key=", "?key=ek_x", f"?key={token}", f"?key={key[:-1]}_"):
            problem(self.send(tenant, query, b"{}"), 401, "Unauthenticated")
        member = made(
            tenant["admin"].post("/keys", {"user_id": tenant.users["member"], "role": "member"})
        ).body["key"]
        until(lambda: self.send(tenant, f"?key={member}", b"{}").status != 401)
        problem(self.send(tenant, f"?key={member}", b"{}"), 403, "Forbidden")

    def test_a_publishable_key_may_do_nothing_else(self, tenant: Tenant, key: str) -> None:
        for method, path, content in (
            ("GET", "/events", None),
            ("GET", "/analytics/events", None),
            ("GET", "/notes", None),
            ("POST", "/events", b'{"event_type":"rl","payload":{}}'),
            ("POST", "/analytics/events", b"{}"),
            ("POST", "/notes", b'{"content":"x"}'),
            ("POST", "/attribution/tag-link", b'{"url":"https://a.b/","platform":"web"}'),
        ):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            reply = exchange(tenant.cast.url, method, path, headers, content)
            problem(reply, 403, "Forbidden")

    def test_only_a_key_that_is_published_has_origins(self, tenant: Tenant) -> None:
        body = {"user_id": tenant.users["viewer"], "role": "viewer", "origins": [ORIGIN]}
        assert problem(tenant["admin"].post("/keys", body), 400, "Invalid")["field"] == "origins"

    @pytest.mark.parametrize(
        "origin", ["null", "*", "https://Example.com", "https://a.b/", "ftp://a.b", "https://a.b:0"]
    )
    def test_an_origin_is_as_browsers_send_it(self, tenant: Tenant, origin: str) -> None:
        body = {"user_id": tenant.users["viewer"], "role": "beacon", "origins": [origin]}
        problem(tenant["admin"].post("/keys", body), 400, "Invalid")

    @pytest.mark.parametrize(
        ("content", "media_type", "status"),
        [
            (b"", TEXT, 400),
            (b"{", TEXT, 400),
            (b'{"platform":"a b"}', TEXT, 400),
            (b'{"events":[]}', TEXT, 400),
            (b'{"events":[%s{}]}' % (b'{"page_title":"%s"},' % (b"x" * 300) * 210), TEXT, 413),
            (b"{}", "text/html", 415),
            (b"{}", "multipart/form-data", 415),
        ],
    )
    def test_a_body_that_is_none(
        self, tenant: Tenant, key: str, content: bytes, media_type: str, status: int
    ) -> None:
        problem(self.send(tenant, f"?key={key}", content, content_type=media_type), status)

    def test_text_is_a_body_for_the_beacon_alone(self, tenant: Tenant) -> None:
        problem(tenant["member"].post("/analytics/events", b"{}", content_type=TEXT), 415)

    def test_another_surface_or_project_is_a_mismatch(self, tenant: Tenant, key: str) -> None:
        for name in ("surface_id", "project_id", "app_id", "env"):
            problem(self.send(tenant, f"?key={key}&{name}=nobody", b"{}"), 403, "ContextMismatch")

    def test_the_key_is_good_for_nothing_else(self, tenant: Tenant, key: str) -> None:
        anybody = Caller(tenant.cast.url, key, {})
        for path in ("/me", "/bootstrap", "/notes", "/analytics/events"):
            problem(anybody.get(path), 403, "Forbidden")

    def test_a_limit_holds_for_the_beacon(self, tenant: Tenant, key: str) -> None:
        route = "POST /analytics/beacon"
        limit = {"name": "beacon", "per": ["key"], "route": route, "limit": 2, "window_seconds": 3_600}
        made(tenant["admin"].put("/rate-limits/policy", {"limits": [limit]}))
        until(lambda: self.send(tenant, f"?key={key}", b"{}").status == 429)

    def test_a_revoked_key_stops(self, tenant: Tenant, key: str) -> None:
        key_id = key.split("_")[1]
        assert tenant["admin"].delete(f"/keys/{key_id}").status == 204
        until(lambda: self.send(tenant, f"?key={key}", b"{}").status == 401)

    def test_the_log_has_no_key(self, cast: Cast, tenant: Tenant, key: str) -> None:
        assert self.send(tenant, f"?key={key}", b"{}").status == 204
        assert self.send(tenant, f"?key={key}", b"{").status == 400
        assert key not in cast.lab.output.read_text()
        assert key.rsplit("_", 1)[1] not in cast.lab.output.read_text()
