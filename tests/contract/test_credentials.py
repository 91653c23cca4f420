"""Memberships, API keys and issuers: who may sign in, as whom, and for how long."""

import time

from tests.contract.cast import ADOPTION_S, AUDIENCE, ISSUER, Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, exchange, problem, record


def test_an_invited_user_accepts_alone_and_needs_no_accepted_membership(cast: Cast) -> None:
    house = cast.tenant("owner")
    user = cast.user()
    invited = record(house["owner"].put(house.path(f"/members/{user}"), {"role": "member"}), 201)
    assert (invited["status"], invited["role"]) == ("invited", "member")
    caller = cast.as_user(user)
    problem(caller.get("/me"), 403)
    accept = house.path(f"/members/{user}/accept")
    problem(house["owner"].post(accept), 403)
    problem(cast.system_admin.post(accept), 403)
    accepted = record(caller.post(accept))
    assert accepted["status"] == "accepted"
    assert caller.get("/me").body["tenant_id"] == house.tenant_id
    assert record(caller.post(accept))["status"] == "accepted"


def test_accepting_where_nobody_invited_is_refused_alike_for_every_tenant(cast: Cast) -> None:
    user = cast.user()
    caller = cast.as_user(user)
    house = cast.tenant()
    replies = [
        caller.post(f"/tenants/{name}/members/{user}/accept") for name in (house.tenant_id, "t_nobody_made")
    ]
    documents = [{**problem(reply, reply.status), "request_id": ""} for reply in replies]
    assert documents[0] == documents[1]
    assert replies[0].status in (403, 404)


def test_an_invited_user_who_accepts_for_another_user_is_refused(cast: Cast) -> None:
    house = cast.tenant()
    one, two = cast.user(), cast.user()
    for user in (one, two):
        made(house.invite(user, "member"))
    assert cast.as_user(one).post(house.path(f"/members/{two}/accept")).status == 403


def test_a_revoked_membership_holds_within_a_second_and_an_invitation_starts_again(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    user, caller = house.users["member"], house["member"]
    path = house.path(f"/members/{user}")
    key = house.key(user, "member")
    assert key.get("/me").status == 200
    assert house["owner"].delete(path).status == 204
    began = time.monotonic()
    until(lambda: caller.get("/me").status == 403)
    until(lambda: key.get("/me").status in (401, 403))
    assert time.monotonic() - began <= ADOPTION_S
    gone = house["owner"].get(path)
    assert gone.status == 404 or gone.body["status"] == "revoked"
    assert house["owner"].delete(path).status == 404
    again = house.invite(user, "viewer")
    assert again.status in (200, 201), again
    assert again.body["status"] == "invited"
    problem(caller.get("/me"), 403)


def test_a_revoked_member_cannot_accept_their_old_invitation(cast: Cast) -> None:
    house = cast.tenant("member")
    user = house.users["member"]
    assert house.operator.delete(house.path(f"/members/{user}")).status == 204
    assert cast.as_user(user).post(house.path(f"/members/{user}/accept")).status in (403, 404)


def test_a_changed_role_holds_within_a_second(cast: Cast) -> None:
    house = cast.tenant("member")
    user, caller = house.users["member"], house["member"]
    assert house.invite(user, "viewer").status == 200

    def demoted() -> bool:
        return caller.post("/notes", {"content": "x"}).status == 403

    until(demoted)


# --- API keys ---


def test_a_key_is_bound_to_one_tenant_user_and_role(cast: Cast, tenant: Tenant) -> None:
    user = tenant.users["owner"]
    reply = made(tenant.operator.post("/keys", {"user_id": user, "role": "viewer", "name": "reader"}))
    assert reply.body["key"].startswith("ek_" + reply.body["key_id"] + "_")
    key = Caller(cast.url, reply.body["key"], {})
    me = key.get("/me").body
    assert (me["tenant_id"], me["user_id"], me["roles"]) == (tenant.tenant_id, user, ["viewer"])
    problem(key.post("/notes", {"content": "x"}), 403, "Forbidden")
    problem(key.get("/me", x_tenant_id="t_demo"), 403, "ContextMismatch")


def test_a_keys_secret_is_shown_once(tenant: Tenant) -> None:
    reply = made(tenant["owner"].post("/keys", {"user_id": tenant.users["member"], "role": "member"}))
    key, key_id = reply.body["key"], reply.body["key_id"]
    listed = tenant["owner"].items("/keys")
    assert key_id in {item["key_id"] for item in listed}
    assert key.rpartition("_")[2] not in str(listed)
    assert not any(item.get("key") for item in listed)


def test_a_key_with_another_secret_is_401(cast: Cast, tenant: Tenant) -> None:
    key = str(tenant.key(tenant.users["member"], "member").credential)
    for wrong in (key[:-1] + ("a" if key[-1] != "a" else "b"), key + "a", key[:-1], key.upper()):
        problem(Caller(cast.url, wrong, {}).get("/me"), 401, "Unauthenticated")


def test_a_revoked_key_is_401_within_a_second(tenant: Tenant) -> None:
    reply = made(tenant["owner"].post("/keys", {"user_id": tenant.users["member"], "role": "member"}))
    key = Caller(tenant.cast.url, reply.body["key"], {})
    assert key.get("/me").status == 200
    path = f"/keys/{reply.body['key_id']}"
    assert tenant["owner"].delete(path).status == 204
    began = time.monotonic()
    until(lambda: key.get("/me").status == 401)
    assert time.monotonic() - began <= ADOPTION_S
    problem(tenant["owner"].delete(path), 404, "NotFound")


def test_a_key_of_another_tenant_is_404(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("owner")
    reply = made(other["owner"].post("/keys", {"user_id": other.users["owner"], "role": "viewer"}))
    theirs, nobodys = f"/keys/{reply.body['key_id']}", "/keys/nobody-made-this"
    etags = ("*", str(reply.etag), '"another"')
    for given in ({}, {"if_none_match": "*"}, *({"if_match": etag} for etag in etags)):
        answers = [tenant["owner"].delete(path, **given) for path in (theirs, nobodys)]
        told = [{**problem(answer, answer.status), "request_id": ""} for answer in answers]
        assert told[0] == told[1], given
        assert given or told[0]["code"] == "NotFound"
    assert Caller(cast.url, reply.body["key"], {}).get("/me").status == 200


def test_a_key_for_a_user_who_is_no_member_is_refused(cast: Cast, tenant: Tenant) -> None:
    for user in (cast.user(), "u_nobody_made_this"):
        reply = tenant["owner"].post("/keys", {"user_id": user, "role": "member"})
        assert 400 <= reply.status < 500, reply


def test_a_key_never_carries_more_than_its_maker_or_its_user_may(tenant: Tenant) -> None:
    reply = tenant["admin"].post("/keys", {"user_id": tenant.users["admin"], "role": "owner"})
    assert reply.status in (400, 403), reply
    reply = tenant["admin"].post("/keys", {"user_id": tenant.users["owner"], "role": "owner"})
    assert reply.status in (400, 403), reply


def test_a_demoted_admin_keeps_no_key_of_an_admins_power(cast: Cast) -> None:
    house = cast.tenant("admin")
    user = house.users["admin"]
    key = house.key(user, "admin")
    assert key.get("/keys").status == 200
    assert house.invite(user, "viewer").status == 200
    began = time.monotonic()
    until(lambda: key.get("/keys").status == 403)
    assert time.monotonic() - began <= ADOPTION_S
    problem(key.post("/keys", {"user_id": user, "role": "viewer"}), 403, "Forbidden")
    me, own = key.get("/me").body, house.cast.as_user(user).get("/me").body
    assert (me["roles"], me["permissions"]) == (["viewer"], own["permissions"])
    assert me["sources"]["roles"] == "api key and membership"
    assert key.get("/notes").status == 200


def test_a_demoted_admin_of_t_system_has_no_key_to_every_tenant(cast: Cast) -> None:
    system, other = Tenant(cast, "t_system"), cast.tenant("owner")
    user = cast.user()
    system.join(user, "admin")
    key = system.key(user, "admin")
    there = key.having(x_tenant_id=other.tenant_id)
    assert key.get("/users").status == there.get("/keys").status == 200
    assert system.invite(user, "viewer").status == 200
    until(lambda: key.get("/users").status == 403)
    problem(there.get("/keys"), 403, "ContextMismatch")
    problem(key.get("/metrics"), 403, "Forbidden")
    problem(key.put("/modes/lab", {"allowed_classes": []}), 403, "Forbidden")


def test_keys_end_with_the_membership_and_do_not_come_back_with_the_next(cast: Cast) -> None:
    house = cast.tenant("admin", "owner")
    user, path = house.users["admin"], house.path(f"/members/{house.users['admin']}")
    keys = [house.key(user, "viewer")]
    for _ in range(2):
        until(lambda: keys[-1].get("/me").status == 200)
        assert house["owner"].delete(path).status == 204
        until(lambda: keys[-1].get("/me").status == 403)
        made(house.invite(user, "admin"))
        for key in keys:
            problem(key.post(f"{path}/accept"), 403, "Forbidden")
        assert cast.as_user(user).post(f"{path}/accept").status == 200
        until(lambda: cast.as_user(user).get("/me").status == 200)
        for key in keys:
            problem(key.get("/me"), 403, "Forbidden")
        keys.append(house.key(user, "admin"))
    # Another role in the same membership ends no key of it.
    assert house.invite(user, "owner").status == 200
    until(lambda: cast.as_user(user).get("/me").body["roles"] == ["owner"])
    assert keys[-1].get("/me").body["roles"] == ["admin"]
    assert "began_at_version" not in record(house["owner"].get(path))
    assert not any("membership" in item for item in house["owner"].items("/keys"))


def test_an_admin_cannot_make_an_owner(tenant: Tenant) -> None:
    reply = tenant["admin"].put(tenant.path(f"/members/{tenant.users['admin']}"), {"role": "owner"})
    assert reply.status in (400, 403), reply


def test_a_credential_in_the_query_is_no_credential(cast: Cast, tenant: Tenant) -> None:
    token = tenant["member"].credential
    for name in ("token", "access_token", "authorization", "key"):
        assert exchange(cast.url, "GET", f"/me?{name}={token}", {}).status in (400, 401)


# --- issuers ---


def test_issuers_are_t_system_admins_alone(cast: Cast, tenant: Tenant) -> None:
    path = f"/issuers/{fresh('i')}"
    body = {"issuer": f"https://{fresh('x')}.example", "audience": "a", "jwks_file": "/nonexistent"}
    problem(tenant["owner"].put(path, body), 403, "Forbidden")
    problem(tenant["owner"].get("/issuers/people"), 403, "Forbidden")
    problem(tenant["owner"].delete("/issuers/people"), 403, "Forbidden")
    assert cast.system_admin.put(path, body).status in (201, 400)


def test_an_issuer_is_made_read_replaced_and_deleted(cast: Cast) -> None:
    name = fresh("i")
    file = str(cast.directory / "people.jwks")
    body = {"issuer": f"https://{name}.example", "audience": AUDIENCE, "jwks_file": file}
    path = f"/issuers/{name}"
    first = record(cast.system_admin.put(path, body), 201)
    assert record(cast.system_admin.get(path))["issuer"] == body["issuer"]
    second = record(cast.system_admin.put(path, {**body, "audience": "b"}), 200)
    assert first["etag"] != second["etag"]
    assert cast.system_admin.delete(path).status == 204
    problem(cast.system_admin.get(path), 404, "NotFound")
    problem(cast.system_admin.delete(path), 404, "NotFound")


def test_a_token_of_a_deleted_issuer_is_401_within_a_second(cast: Cast) -> None:
    name = fresh("i")
    issuer = f"https://{name}.example"
    user = fresh("u")
    identities = [{"iss": issuer, "sub": user}]
    made(cast.system_admin.post("/users", {"user_id": user, "identities": identities}))
    body = {"issuer": issuer, "audience": AUDIENCE, "jwks_file": str(cast.directory / "people.jwks")}
    made(cast.system_admin.put(f"/issuers/{name}", body))
    caller = cast.as_user(user, {"iss": issuer})
    until(lambda: caller.get("/me").status == 403)
    assert cast.system_admin.delete(f"/issuers/{name}").status == 204
    until(lambda: caller.get("/me").status == 401)


def test_the_tests_issuer_is_not_the_labs(cast: Cast) -> None:
    assert cast.system_admin.get("/issuers/people").body["issuer"] == ISSUER
    assert ADOPTION_S > 1
