"""Every change of the control plane is told on the spine, once, and no refusal is told as a change."""

from typing import Any

from tests.contract.cast import Cast, fresh, made, until
from tests.contract.wire import problem

NEW = {"if_none_match": "*"}


def test_every_change_of_a_tenants_control_plane_is_audited_on_its_spine(cast: Cast) -> None:
    house = cast.tenant("owner")
    owner = house["owner"]
    user = cast.user()
    member = house.path(f"/members/{user}")
    made(owner.put(member, {"role": "member"}, x_request_id="audit-1"))
    assert cast.as_user(user).post(f"{member}/accept", x_request_id="audit-2").status == 200
    assert owner.put(member, {"role": "viewer"}, x_request_id="audit-3").status == 200
    key_id = made(owner.post("/keys", {"user_id": user, "role": "viewer"}, x_request_id="audit-4")).body[
        "key_id"
    ]
    assert owner.delete(f"/keys/{key_id}", x_request_id="audit-5").status == 204
    assert owner.delete(member, x_request_id="audit-6").status == 204
    made(owner.post("/projects", {"project_id": "p", "name": "P"}, x_request_id="audit-7"))
    assert owner.patch("/projects/p", {"name": "Q"}, x_request_id="audit-8").status == 200
    route = made(owner.put("/routes/notes_store", {"backend_id": "lab"}, x_request_id="audit-9", **NEW))
    assert (
        owner.delete("/routes/notes_store", if_match=str(route.etag), x_request_id="audit-10").status == 204
    )
    etag = str(owner.get(house.path()).etag)
    assert owner.patch(house.path(), {"name": "N"}, if_match=etag, x_request_id="audit-11").status == 200
    wanted = {f"audit-{number}" for number in range(1, 12)}

    def told() -> bool:
        events = owner.items("/events?event_type=audit")
        assert all(event["source"] == "system" for event in events)
        return wanted <= {event["payload"].get("request_id") for event in events}

    until(told)
    events = owner.items("/events?event_type=audit")
    accepted = next(event for event in events if event["payload"].get("request_id") == "audit-2")
    assert accepted["user_id"] == user
    keyed = [event["payload"] for event in events if event["payload"].get("record") == key_id]
    assert [one["action"] for one in keyed] == ["keys.created", "keys.deleted"]
    for one in keyed:
        assert one["about"] == {"user_id": user, "role": "viewer"}
        assert one["actor"] == {"user_id": house.users["owner"], "tenant_id": house.tenant_id}
    secrets = [event for event in events if "ek_" in str(event)]
    assert not secrets


def test_every_change_of_t_systems_is_audited_on_t_systems_spine(cast: Cast) -> None:
    system, stem = cast.system_admin, fresh("sys")
    sqlite = {
        "driver": "sqlite",
        "class": "host_local",
        "config": {"path": str(cast.directory / f"{stem}.db")},
    }
    calls: list[tuple[str, str, Any, dict[str, str]]] = [
        ("POST", "/users", {"user_id": stem, "identities": []}, {}),
        ("POST", "/oses", {"os_id": stem, "name": "O"}, {}),
        ("POST", "/surfaces", {"surface_id": stem, "os_id": stem, "name": "S"}, {}),
        ("POST", "/apps", {"app_id": stem, "surface_id": stem, "name": "A"}, {}),
        ("PATCH", f"/apps/{stem}", {"name": "B"}, {}),
        ("PUT", f"/modes/{stem}", {"allowed_classes": []}, {}),
        ("PUT", f"/backends/{stem}", sqlite, NEW),
        ("DELETE", f"/backends/{stem}", None, {"if_match": "*"}),
        (
            "PUT",
            f"/issuers/{stem}",
            {
                "issuer": f"https://{stem}.example",
                "audience": "a",
                "jwks_file": str(cast.directory / "people.jwks"),
            },
            {},
        ),
        ("DELETE", f"/issuers/{stem}", None, {}),
        (
            "POST",
            "/tenants",
            {"tenant_id": f"t_{stem}", "name": "T", "mode": "lab", "default_surface_id": "chat"},
            {},
        ),
        ("PUT", "/routes/notes_store", {"backend_id": "lab", "scope": {"surface_id": stem}}, NEW),
        ("DELETE", f"/routes/notes_store?surface_id={stem}", None, {"if_match": "*"}),
    ]
    wanted = set()
    for number, (method, path, body, headers) in enumerate(calls):
        request = f"{stem}-{number}"
        reply = system.call(method, path, body, x_request_id=request, **headers)
        assert reply.status in (200, 201, 204), (method, path, reply)
        wanted.add(request)

    def told() -> bool:
        events = system.get("/events?event_type=audit&order=desc&limit=1000").body["items"]
        return wanted <= {event["payload"].get("request_id") for event in events}

    until(told)


def test_a_refused_change_is_not_audited_as_done(cast: Cast) -> None:
    house = cast.tenant("owner")
    problem(
        house["owner"].put(
            "/routes/notes_store", {"backend_id": "nonesuch"}, x_request_id="refused-1", **NEW
        ),
        400,
    )
    made(house["owner"].post("/projects", {"project_id": "p", "name": "P"}, x_request_id="done-1"))

    def told() -> list[Any]:
        events = house["owner"].items("/events?event_type=audit")
        return [event for event in events if event["payload"].get("request_id") == "done-1"]

    until(told)
    assert "refused-1" not in str(house["owner"].items("/events?event_type=audit"))


def test_repeated_changes_are_audited_once(cast: Cast) -> None:
    house = cast.tenant("owner")
    for _ in range(3):
        made(house["owner"].post("/projects", {"project_id": "p", "name": "P"}, idempotency_key="k"))
    made(house["owner"].post("/projects", {"project_id": "q", "name": "Q"}))

    def projects() -> list[str]:
        events = house["owner"].items("/events?event_type=audit")
        return [
            event["payload"]["record"]
            for event in events
            if event["payload"]["action"].startswith("projects.")
        ]

    until(lambda: any(record.endswith("q") for record in projects()))
    assert sum(record.endswith("/p") or record == "p" for record in projects()) == 1
