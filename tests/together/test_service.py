"""The same over HTTP: a server process of its own, and the command line as its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from engines.client import AsyncEngines, Engines, NewNote
from engines.control.bootstrap import Seed, apply_seed
from engines.drivers.registry import document_driver, driver_of_url
from engines.wiring import open_control_plane
from tests.deployment.conftest import AUDIENCE, ISSUER, jwks_file, token
from tests.together.conftest import DATA_KINDS, DRIVERS, MIXED, NOT_MIXED, NewUrl, seed, tenant_of
from tests.together.service import Service

__all__ = ["jwks_file"]

TENANTS = (*map(tenant_of, DRIVERS), "t_mixed")


def owned(jwks: Path) -> Seed:
    """The tenants, all of one owner, whose tokens are the test's own."""
    return {
        **seed(),
        "users": [{"user_id": "owner", "identities": [{"iss": ISSUER, "sub": "owner"}]}],
        "memberships": [
            {"tenant_id": tenant_id, "user_id": "owner", "role": "owner", "status": "accepted"}
            for tenant_id in TENANTS
        ],
        "issuers": [{"issuer_id": "test", "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(jwks)}],
    }


@pytest.fixture
def services() -> Iterator[list[Service]]:
    """What is in it at the end is stopped."""
    started: list[Service] = []
    yield started
    for service in started:
        service.stop()


def put(service: Service, url: str, backend_id: str) -> str | None:
    """Put what a URL describes through the command line; returns the secret in it."""
    module = document_driver(driver_of_url(url))
    config, secret = module.config_from_url(url)
    arguments = ["--driver", module.DESCRIPTION.name, "--class", module.DESCRIPTION.backend_class]
    if secret is not None:
        name = next(iter(module.DESCRIPTION.secrets))
        arguments += [f"--secret.{name}", f"env:{variable(backend_id)}"]
    done = service.engines(
        "backends", "put", backend_id, *arguments, "--config", json.dumps(config), "--offered-to", "*"
    )
    assert done.code == 0, done.err
    return secret


def variable(backend_id: str) -> str:
    return f"ENGINES_SECRET_TEST_{backend_id.upper()}"


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_control_plane_may_be_on_each_backend(
    driver: str, new_url: NewUrl, tmp_path: Path, services: list[Service]
) -> None:
    url = new_url(driver)
    service = Service(tmp_path, url, {})
    services.append(service)
    service.init()
    service.start()
    assert service.engines("backends", "probe", "control", "--json").json["ok"] is True
    service.stop()
    service.start()
    with Engines(service.url, service.admin_key) as client:
        assert [(each.backend_id, each.driver) for each in client.backends.each()] == [("control", driver)]
        assert client.backends.probe("control").ok
    service.stop()
    secret = document_driver(driver).config_from_url(url)[1]
    check_unsaid(service, secret)


def check_unsaid(service: Service, *secrets: str | None) -> None:
    """No secret is in anything that the commands or the server said."""
    said = "\n".join([*service.said, service.log])
    for secret in secrets:
        if secret is not None:
            assert secret not in said
            assert quote(secret, safe="") not in said


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_server_has_tenants_on_every_backend(
    new_url: NewUrl,
    tmp_path: Path,
    jwks_file: Path,
    services: list[Service],
) -> None:
    urls = {driver: new_url(driver) for driver in DRIVERS}
    passwords = {driver: document_driver(driver).config_from_url(url)[1] for driver, url in urls.items()}
    secrets = {variable(driver): secret for driver, secret in passwords.items() if secret is not None}
    control_url = new_url("postgres")
    service = Service(tmp_path, control_url, secrets)
    services.append(service)
    service.init()
    async with open_control_plane(control_url) as control:
        await apply_seed(control.store, owned(jwks_file))
    service.start()
    await asyncio.gather(*(asyncio.to_thread(put, service, url, driver) for driver, url in urls.items()))
    async with AsyncEngines(service.url, service.admin_key) as admin:
        probed = await asyncio.gather(*map(admin.backends.probe, urls))
        assert [probe.ok for probe in probed] == [True] * len(urls)
    key = token("owner")
    routes = [(tenant_of(driver), kind, driver) for driver in DRIVERS for kind in DATA_KINDS]
    routes += [("t_mixed", kind, driver) for kind, driver in MIXED.items()]
    for tenant_id, kind, backend_id in routes:
        async with AsyncEngines(service.url, key, tenant_id=tenant_id) as client:
            await client.routes.put(kind, backend_id, if_absent=True)
    for tenant_id in TENANTS:
        async with AsyncEngines(service.url, key, tenant_id=tenant_id) as client:
            used = {kind.resource_kind: kind.backend_id for kind in await client.diagnostics.routes()}
            expected = {kind: tenant_id.removeprefix("t_") for kind in DATA_KINDS}
            if tenant_id == "t_mixed":
                expected = {**MIXED, **dict.fromkeys(NOT_MIXED, "control")}
                report = service.engines("doctor", "--json", "--tenant", tenant_id, key=key)
                assert report.code == 0, report.out
                doctored = {kind["resource_kind"]: kind["backend_id"] for kind in report.json["kinds"]}
                assert {kind: doctored[kind] for kind in DATA_KINDS} == expected
            assert {kind: used[kind] for kind in DATA_KINDS} == expected
            await client.notes.create(NewNote(title="kept", content=tenant_id))
    service.stop()
    service.start()
    for tenant_id in TENANTS:
        async with AsyncEngines(service.url, key, tenant_id=tenant_id) as client:
            assert [note.content async for note in client.notes.each()] == [tenant_id]
    check_unsaid(service, *secrets.values(), document_driver("postgres").config_from_url(control_url)[1])
