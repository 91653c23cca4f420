"""Tenants, users, members, modes, OSes, surfaces, apps, projects and keys: their bodies, rules and audit."""

from functools import partial
from typing import Any

import pytest

from tests.contract.cast import ISSUER, Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, problem, record

NEW = {"if_none_match": "*"}
STAMPS = {"etag", "version", "created_at", "updated_at", "updated_by"}


def tenant_body(**change: Any) -> dict[str, Any]:
    return {
        "tenant_id": fresh("t_c"),
        "name": "T",
        "mode": "lab",
        "envs": ["prod", "dev"],
        "default_env": "dev",
        "default_surface_id": "chat",
        **change,
    }


def test_a_tenant_is_what_its_body_said(cast: Cast) -> None:
    body = tenant_body()
    one = record(cast.system_admin.post("/tenants", body), 201)
    assert {name: one[name] for name in body} == body
    assert set(one) == set(body) | STAMPS
    assert record(cast.system_admin.get(f"/tenants/{body['tenant_id']}")) == one
    assert body["tenant_id"] in {item["tenant_id"] for item in cast.system_admin.items("/tenants")}


def test_a_new_tenants_defaults_are_its_members_context(cast: Cast) -> None:
    house = cast.tenant("member", envs=["prod", "dev"], default_env="dev", default_surface_id="canvas")
    me = house["member"].get("/me").body
    assert (me["env"], me["surface_id"], me["mode"]) == ("dev", "canvas", "lab")


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": "demo"},
        {"tenant_id": "t_UPPER"},
        {"tenant_id": "t_"},
        {"tenant_id": "t_" + "a" * 63},
        {"tenant_id": "t_a\n"},
        {"mode": "nonesuch"},
        {"envs": []},
        {"envs": ["PROD"], "default_env": "PROD"},
        {"envs": ["prod"], "default_env": "dev"},
        {"envs": "prod"},
        {"envs": ["prod", "prod"], "default_env": "prod"},
        {"default_surface_id": "nonesuch"},
        {"default_surface_id": ""},
        {"name": ""},
        {"name": None},
        {"owner": "u"},
        {"etag": "x"},
    ],
    ids=repr,
)
def test_a_tenant_that_breaks_a_rule_is_400(cast: Cast, change: dict[str, Any]) -> None:
    problem(cast.system_admin.post("/tenants", tenant_body(**change)), 400, "Invalid")


@pytest.mark.parametrize("missing", ["tenant_id", "name", "mode"])
def test_a_tenant_without_a_required_field_is_400(cast: Cast, missing: str) -> None:
    body = tenant_body()
    del body[missing]
    assert problem(cast.system_admin.post("/tenants", body), 400, "Invalid")["field"] == missing


def test_a_tenant_id_of_64_characters_is_taken(cast: Cast) -> None:
    name = ("t_" + fresh("x") + "-" + "a" * 64)[:64]
    made(cast.system_admin.post("/tenants", tenant_body(tenant_id=name)))


def test_a_patched_tenant_is_adopted_within_a_second(cast: Cast) -> None:
    house = cast.tenant("member", "owner", envs=["prod", "dev"])
    etag = house["owner"].get(house.path()).etag
    change = {"default_env": "dev", "tenant_id": house.tenant_id}
    changed = record(house["owner"].patch(house.path(), change, if_match=str(etag)))
    assert (changed["default_env"], changed["version"]) == ("dev", 2)
    until(lambda: house["member"].get("/me").body["env"] == "dev")


@pytest.mark.parametrize(
    "change",
    [
        {"default_env": "none"},
        {"envs": []},
        {"nonesuch": 1},
        {"default_surface_id": "nonesuch"},
        {"name": None},
    ],
)
def test_a_patch_that_breaks_a_rule_is_400(tenant: Tenant, change: dict[str, Any]) -> None:
    etag = tenant["owner"].get(tenant.path()).etag
    problem(tenant["owner"].patch(tenant.path(), change, if_match=str(etag)), 400, "Invalid")


def test_an_owner_cannot_change_their_tenants_mode_to_one_that_the_lab_refuses(tenant: Tenant) -> None:
    for caller in (tenant["owner"], tenant.operator):
        etag = caller.get(tenant.path()).etag
        reply = caller.patch(tenant.path(), {"mode": "saas"}, if_match=str(etag))
        assert reply.status in (400, 403), reply
    assert tenant["owner"].get("/me").body["mode"] == "lab"


# --- users ---


def test_a_user_is_what_their_body_said(cast: Cast) -> None:
    user = fresh("u")
    body = {"user_id": user, "name": "N", "identities": [{"iss": ISSUER, "sub": user}]}
    one = record(cast.system_admin.post("/users", body), 201)
    assert {name: one[name] for name in body} == body
    assert user in {item["user_id"] for item in cast.system_admin.items("/users")}


def test_an_identity_is_bound_to_one_user(cast: Cast) -> None:
    sub = fresh("sub")
    made(
        cast.system_admin.post("/users", {"user_id": fresh("u"), "identities": [{"iss": ISSUER, "sub": sub}]})
    )
    reply = cast.system_admin.post(
        "/users", {"user_id": fresh("u"), "identities": [{"iss": ISSUER, "sub": sub}]}
    )
    problem(reply, 409, "Conflict")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "a b"},
        {"user_id": ""},
        {"identities": [{"iss": ISSUER}]},
        {"identities": [{"iss": ISSUER, "sub": 7}]},
        {"identities": [{"iss": ISSUER, "sub": "x", "aud": "y"}]},
        {"identities": {}},
        {"role": "owner"},
    ],
    ids=repr,
)
def test_a_user_who_breaks_a_rule_is_400(cast: Cast, change: dict[str, Any]) -> None:
    problem(
        cast.system_admin.post("/users", {"user_id": fresh("u"), "identities": [], **change}), 400, "Invalid"
    )


def test_a_new_user_is_403_until_they_belong_somewhere(cast: Cast) -> None:
    user = cast.user()
    problem(cast.as_user(user).get("/me"), 403, "Forbidden")


# --- members ---


def test_a_member_is_shown_with_role_and_status(cast: Cast, tenant: Tenant) -> None:
    user = cast.user()
    path = tenant.path(f"/members/{user}")
    body = {"role": "agent", "tenant_id": tenant.tenant_id, "user_id": user}
    one = record(tenant["admin"].put(path, body), 201)
    assert (one["tenant_id"], one["user_id"], one["role"], one["status"]) == (
        tenant.tenant_id,
        user,
        "agent",
        "invited",
    )
    assert record(tenant["admin"].get(path)) == one


def test_a_member_body_that_names_another_tenant_or_user_is_refused(cast: Cast, tenant: Tenant) -> None:
    user = cast.user()
    path = tenant.path(f"/members/{user}")
    assert tenant["admin"].put(path, {"role": "member", "tenant_id": "t_other"}).status in (400, 403)
    assert tenant["admin"].put(path, {"role": "member", "user_id": "u_other"}).status in (400, 403)
    problem(tenant["admin"].get(path), 404, "NotFound")


def test_a_member_who_is_no_user_is_404(tenant: Tenant) -> None:
    path = tenant.path("/members/u_nobody_made_this")
    problem(tenant["admin"].put(path, {"role": "member"}), 404, "NotFound")
    problem(tenant["admin"].get(path), 404, "NotFound")
    problem(tenant["admin"].delete(path), 404, "NotFound")


@pytest.mark.parametrize("body", [{}, {"role": ""}, {"role": 7}, {"role": "member", "status": "accepted"}])
def test_a_member_body_that_breaks_a_rule_is_400(cast: Cast, tenant: Tenant, body: Any) -> None:
    problem(tenant["admin"].put(tenant.path(f"/members/{cast.user()}"), body), 400, "Invalid")


def test_changing_an_accepted_members_role_keeps_them_accepted(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    changed = record(house.invite(house.users["member"], "viewer"))
    assert (changed["status"], changed["role"]) == ("accepted", "viewer")


# --- modes, OSes, surfaces, apps, projects ---


def test_a_mode_is_what_its_body_said_and_anybody_reads_it(cast: Cast, tenant: Tenant) -> None:
    mode = fresh("mode")
    body = {
        "allowed_classes": ["cloud", "server"],
        "optional_kinds": ["memory_store"],
        "per_tenant_kinds": ["notes_store"],
    }
    one = record(cast.system_admin.put(f"/modes/{mode}", {**body, "mode": mode}), 201)
    assert {name: one[name] for name in body} == body
    assert record(tenant["viewer"].get(f"/modes/{mode}"))["mode"] == mode
    problem(tenant["viewer"].get("/modes/nonesuch"), 404, "NotFound")


@pytest.mark.parametrize(
    "change",
    [
        {"allowed_classes": ["memory"]},
        {"allowed_classes": "cloud"},
        {"optional_kinds": ["nonesuch"]},
        {"x": 1},
    ],
)
def test_a_mode_that_breaks_a_rule_is_400(cast: Cast, change: dict[str, Any]) -> None:
    problem(cast.system_admin.put(f"/modes/{fresh('m')}", {"allowed_classes": [], **change}), 400, "Invalid")


def test_a_kind_that_a_mode_marks_by_an_alias_is_marked_by_its_name(cast: Cast) -> None:
    body = {
        "allowed_classes": [],
        "optional_kinds": ["maybes", "notes_store"],
        "per_tenant_kinds": ["memory"],
    }
    one = record(cast.system_admin.put(f"/modes/{fresh('m')}", body), 201)
    assert (set(one["optional_kinds"]), one["per_tenant_kinds"]) == ({"notes_store"}, ["memory_store"])


def accepts(caller: Caller, surface: str) -> bool:
    return caller.get("/me", x_surface_id=surface).status == 200


def test_a_surface_is_found_by_every_alias_and_its_aliases_are_its_own(cast: Cast, tenant: Tenant) -> None:
    name = fresh("cubed")
    body = {
        "surface_id": name,
        "os_id": "engines",
        "name": "CUBED³",
        "aliases": [f"{name.upper()}³", f"{name} x"],
    }
    one = record(cast.system_admin.post("/surfaces", body), 201)
    assert one["surface_id"] == name
    for alias in (name, name.upper(), f"{name}%20X", f"{name}%C2%B3", f"{name}3"):
        reply = cast.system_admin.get(f"/surfaces/{alias}")
        assert reply.status in (200, 400), reply  # an id of a path has a pattern of its own
        if reply.status == 200:
            assert reply.body["surface_id"] == name
    for alias in (f"{name}³", f"{name}3", f"{name.upper()} X"):
        until(partial(accepts, tenant["member"], alias))
        assert tenant["member"].get("/me", x_surface_id=alias).body["surface_id"] == name
    other = {"surface_id": fresh("other"), "os_id": "engines", "name": "O"}
    problem(cast.system_admin.post("/surfaces", {**other, "aliases": [f"{name}³"]}), 409, "Conflict")
    problem(
        cast.system_admin.post("/surfaces", {**other, "surface_id": f"{name.upper()} X"}), 409, "Conflict"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"os_id": "nonesuch"},
        {"mode": "nonesuch"},
        {"aliases": "x"},
        {"aliases": [""]},
        {"defaults": {"x": 1}},
        {"surface_id": "!"},
    ],
    ids=repr,
)
def test_a_surface_that_breaks_a_rule_is_400(cast: Cast, change: dict[str, Any]) -> None:
    body = {"surface_id": fresh("s"), "os_id": "engines", "name": "S", **change}
    problem(cast.system_admin.post("/surfaces", body), 400, "Invalid")


def test_a_surfaces_default_app_is_the_contexts(cast: Cast, tenant: Tenant) -> None:
    surface, app = fresh("s"), fresh("a")
    made(cast.system_admin.post("/surfaces", {"surface_id": surface, "os_id": "engines", "name": "S"}))
    made(cast.system_admin.post("/apps", {"app_id": app, "surface_id": surface, "name": "A"}))
    assert cast.system_admin.patch(f"/surfaces/{surface}", {"defaults": {"app_id": app}}).status == 200
    until(lambda: tenant["member"].get("/me", x_surface_id=surface).body.get("app_id") == app)


def test_an_app_on_no_surface_and_a_project_on_no_app_are_400(cast: Cast, tenant: Tenant) -> None:
    problem(
        cast.system_admin.post("/apps", {"app_id": fresh("a"), "surface_id": "nonesuch", "name": "A"}), 400
    )
    body = {"project_id": fresh("p"), "app_id": "nonesuch", "name": "P"}
    problem(tenant["admin"].post("/projects", body), 400, "Invalid")


def test_projects_of_two_tenants_may_have_one_name(cast: Cast) -> None:
    one, two = cast.tenant("admin"), cast.tenant("admin")
    for house in (one, two):
        made(house["admin"].post("/projects", {"project_id": "same", "name": house.tenant_id}))
    assert one["admin"].get("/projects/same").body["name"] == one.tenant_id
    assert [item["name"] for item in two["admin"].items("/projects")] == [two.tenant_id]


def test_a_project_of_another_tenant_is_404(cast: Cast, tenant: Tenant) -> None:
    other, project = cast.tenant("admin"), fresh("p")
    made(other["admin"].post("/projects", {"project_id": project, "name": "P"}))
    for name in (project, "nobody-made-this"):
        problem(tenant["admin"].get(f"/projects/{name}"), 404, "NotFound")
        problem(tenant["admin"].patch(f"/projects/{name}", {"name": "Q"}), 404, "NotFound")


def test_a_new_project_is_bound_at_once_by_those_of_its_tenant(cast: Cast) -> None:
    house = cast.tenant("admin", "member")
    made(house["admin"].post("/projects", {"project_id": "p", "name": "P"}))
    until(lambda: house["member"].get("/me", x_project_id="p").status == 200)


# --- keys ---


@pytest.mark.parametrize(
    ("change", "statuses"),
    [
        ({"role": "emperor"}, {400, 404}),
        ({"role": None}, {400}),
        ({"user_id": "a b"}, {400}),
        ({"tenant_id": "t_other"}, {403}),
        ({"key": "ek_a_b"}, {400}),
        ({"key_id": "mine"}, {400}),
    ],
    ids=repr,
)
def test_a_key_that_breaks_a_rule_is_refused(
    tenant: Tenant, change: dict[str, Any], statuses: set[int]
) -> None:
    body = {"user_id": tenant.users["member"], "role": "member", **change}
    reply = tenant["admin"].post("/keys", body)
    assert reply.status in statuses, reply


def test_a_key_of_t_systems_admin_is_a_system_admin(cast: Cast) -> None:
    reply = made(cast.system_admin.post("/keys", {"user_id": "u_system_admin", "role": "admin"}))
    key = Caller(cast.url, reply.body["key"], {})
    assert key.get("/me").body["tenant_id"] == "t_system"
    house = cast.tenant("member")
    assert key.get("/projects", x_tenant_id=house.tenant_id).status == 200
    problem(key.get("/notes", x_tenant_id=house.tenant_id), 403)


def test_a_key_of_an_invited_user_opens_nothing(cast: Cast) -> None:
    house, user = cast.tenant("owner"), cast.user()
    made(house.invite(user, "member"))
    reply = house["owner"].post("/keys", {"user_id": user, "role": "member"})
    if reply.status == 201:
        assert Caller(cast.url, reply.body["key"], {}).get("/notes").status in (401, 403)
    else:
        assert 400 <= reply.status < 500
