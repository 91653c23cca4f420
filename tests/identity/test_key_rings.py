"""Keys fetched from a real server on this host: rotation, outages, and answers that must not be believed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from engines.errors import Unauthenticated, Unavailable
from engines.identity.jwks import KeySet, KeysRefused
from engines.identity.key_ring import KEYS_AGE_MAX_S, RETRY_S, KeyRing
from engines.identity.key_sources import (
    JWKS_BYTES_MAX,
    URL_LOOK_AGAIN_S,
    URL_REFRESH_S,
    FileKeys,
    UrlKeys,
    check_jwks_url,
)
from engines.testing.clock import ManualClock
from tests.identity.signing import ed_key, jwk, jwks, sealed, token
from tests.identity.world import World

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Issuer:
    """An issuer's web server. `answer` is what it does with the next requests; `hits` counts them."""

    def __init__(self) -> None:
        self.hits = 0
        self.elsewhere_hits = 0
        self.url = ""
        self.answer: Handler = self.keys(jwk(ed_key(), kid="k1"))
        self.released = asyncio.Event()

    def keys(self, *keys: dict[str, str]) -> Handler:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(text=jwks(*keys), content_type="application/json")

        return answer

    async def hang(self, _: web.Request) -> web.StreamResponse:
        await self.released.wait()
        return web.Response(text=jwks(jwk(ed_key(), kid="k1")))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.hits += 1
        return await self.answer(request)

    async def elsewhere(self, _: web.Request) -> web.StreamResponse:
        self.elsewhere_hits += 1
        return web.Response(text=jwks(jwk(ed_key(), kid="k1")))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/jwks", issuer.handle)
    app.router.add_get("/elsewhere", issuer.elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    issuer.url = f"http://{host}:{port}/jwks"
    try:
        yield issuer
    finally:
        issuer.released.set()
        await runner.cleanup()


@pytest.fixture
async def world_of(world: World, issuer: Issuer) -> World:
    """The world, whose issuer publishes its keys on that server."""
    await world.put_issuer(jwks_url=issuer.url)
    return world


def ring_of(url: str, clock: ManualClock) -> KeyRing:
    return KeyRing(UrlKeys(url), clock, issuer_id="main", on_change=lambda: None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 (what is waited for is a number, not an event)
            await asyncio.sleep(0.005)


def with_key(world: World, kid: str, name: str) -> str:
    return token("EdDSA", ed_key(name), world.claims(), kid=kid)


# --- rotation ---


async def test_keys_are_fetched_once_for_many_tokens(world_of: World, issuer: Issuer) -> None:
    tokens = [world_of.token(jti=str(number)) for number in range(20)]
    await asyncio.gather(*(world_of.contexts.context(text) for text in tokens))
    assert issuer.hits == 1


async def test_a_new_key_is_fetched_when_a_token_names_it(world_of: World, issuer: Issuer) -> None:
    await world_of.contexts.context(world_of.token())
    issuer.answer = issuer.keys(jwk(ed_key(), kid="k1"), jwk(ed_key("two"), kid="k2"))
    await world_of.pass_time(URL_LOOK_AGAIN_S)
    assert (await world_of.contexts.context(with_key(world_of, "k2", "two"))).user_id == "ada"
    assert issuer.hits == 2


async def test_invented_key_names_do_not_hammer_the_issuer(world_of: World, issuer: Issuer) -> None:
    await world_of.contexts.context(world_of.token())
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await world_of.contexts.context(with_key(world_of, f"invented-{number}", "stranger"))
    assert issuer.hits == 1
    await world_of.pass_time(URL_LOOK_AGAIN_S)
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await world_of.contexts.context(with_key(world_of, f"again-{number}", "stranger"))
    assert issuer.hits == 2


async def test_an_algorithm_that_is_not_the_issuers_asks_it_for_nothing(
    world_of: World, issuer: Issuer
) -> None:
    await world_of.contexts.context(world_of.token())
    await world_of.pass_time(URL_LOOK_AGAIN_S)
    for alg in ("HS256", "RS512", "none"):
        header = json.dumps({"alg": alg, "kid": "k9"})
        text = sealed("HS256", b"x" * 32, header, json.dumps(world_of.claims()))
        with pytest.raises(Unauthenticated):
            await world_of.contexts.context(text)
    assert issuer.hits == 1


async def test_many_who_name_a_new_key_at_once_share_one_fetch(world_of: World, issuer: Issuer) -> None:
    await world_of.contexts.context(world_of.token())
    issuer.answer = issuer.keys(jwk(ed_key("two"), kid="k2"))
    await world_of.pass_time(URL_LOOK_AGAIN_S)
    tokens = [
        token("EdDSA", ed_key("two"), world_of.claims(jti=str(number)), kid="k2") for number in range(20)
    ]
    contexts = await asyncio.gather(*(world_of.contexts.context(text) for text in tokens))
    assert {context.user_id for context in contexts} == {"ada"}
    assert issuer.hits == 2


async def test_a_withdrawn_key_ends_what_it_verified(world_of: World, issuer: Issuer) -> None:
    text = world_of.token()
    await world_of.contexts.context(text)
    issuer.answer = issuer.keys(jwk(ed_key("two"), kid="k2"))
    await world_of.pass_time(URL_REFRESH_S)
    generation = world_of.verifier.generation
    # The request that finds the set old is answered with what is known, and the set is fetched beside it.
    await world_of.contexts.context(text)
    await until(lambda: world_of.verifier.generation > generation)
    with pytest.raises(Unauthenticated):
        await world_of.contexts.context(text)


async def test_keys_that_stay_the_same_keep_what_was_verified(world_of: World, issuer: Issuer) -> None:
    await world_of.contexts.context(world_of.token())
    generation = world_of.verifier.generation
    await world_of.pass_time(URL_REFRESH_S)
    await world_of.contexts.context(world_of.token())
    await until(lambda: issuer.hits == 2)
    await world_of.contexts.context(world_of.token())
    assert world_of.verifier.generation == generation


# --- outages ---


async def test_keys_at_hand_serve_through_an_outage_up_to_their_age(world_of: World, issuer: Issuer) -> None:
    async def broken(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    await world_of.contexts.context(world_of.token())
    issuer.answer = broken
    await world_of.pass_time(KEYS_AGE_MAX_S - 1)
    await world_of.contexts.context(world_of.token())
    await until(lambda: issuer.hits == 2)
    await world_of.pass_time(1)
    with pytest.raises(Unavailable) as caught:
        await world_of.contexts.context(world_of.token())
    assert caught.value.retry_after_s == RETRY_S
    issuer.answer = issuer.keys(jwk(ed_key(), kid="k1"))
    await world_of.pass_time(RETRY_S)
    await world_of.contexts.context(world_of.token())


async def test_while_the_issuer_is_down_an_unknown_key_is_no_ground_to_refuse(
    world_of: World, issuer: Issuer
) -> None:
    """It may be the issuer's newest: whoever holds it should try again, not sign in again."""

    async def broken(_: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    await world_of.contexts.context(world_of.token())
    issuer.answer = broken
    await world_of.pass_time(URL_LOOK_AGAIN_S)
    with pytest.raises(Unavailable):
        await world_of.contexts.context(with_key(world_of, "k2", "two"))
    assert (await world_of.contexts.context(world_of.token())).user_id == "ada"


async def test_an_issuer_that_was_never_reached_is_asked_once_in_a_while(issuer: Issuer) -> None:
    clock = ManualClock()

    async def broken(_: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    issuer.answer = broken
    ring = ring_of(issuer.url, clock)
    for _ in range(20):
        with pytest.raises(Unavailable):
            await ring.find("k1", "EdDSA")
    assert issuer.hits == 1
    clock.advance(RETRY_S)
    with pytest.raises(Unavailable):
        await ring.find("k1", "EdDSA")
    assert issuer.hits == 2


async def test_an_issuer_that_hangs_holds_up_nobody_whose_key_is_known(
    world_of: World, issuer: Issuer
) -> None:
    await world_of.contexts.context(world_of.token())
    issuer.answer = issuer.hang
    await world_of.pass_time(URL_REFRESH_S)
    async with asyncio.timeout(1):
        await world_of.contexts.context(world_of.token())
    await until(lambda: issuer.hits == 2)
    async with asyncio.timeout(1):
        await world_of.contexts.context(world_of.token())


async def test_an_issuer_that_hangs_is_given_up(issuer: Issuer) -> None:
    issuer.answer = issuer.hang
    ring = ring_of(issuer.url, ManualClock())
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await ring.find("k1", "EdDSA")


async def test_a_caller_that_goes_away_does_not_end_the_fetch_of_the_others(issuer: Issuer) -> None:
    issuer.answer = issuer.hang
    ring = ring_of(issuer.url, ManualClock())
    first = asyncio.create_task(ring.find("k1", "EdDSA"))
    second = asyncio.create_task(ring.find("k1", "EdDSA"))
    await until(lambda: issuer.hits == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    issuer.released.set()
    assert await second is not None
    assert issuer.hits == 1


async def test_closing_ends_a_fetch_under_way(issuer: Issuer) -> None:
    issuer.answer = issuer.hang
    ring = ring_of(issuer.url, ManualClock())
    waiting = asyncio.create_task(ring.find("k1", "EdDSA"))
    await until(lambda: issuer.hits == 1)
    async with asyncio.timeout(1):
        await ring.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_port_where_nobody_listens_is_an_outage() -> None:
    with pytest.raises(Unavailable):
        await ring_of("http://127.0.0.1:1/jwks", ManualClock()).find("k1", "EdDSA")


class FaultyKeys(UrlKeys):
    """Keys whose reading breaks in a way that nobody foresaw, for as long as `fault` stands."""

    fault: Exception | None = None

    async def load(self) -> KeySet:
        if self.fault is not None:
            raise self.fault
        return await super().load()


@pytest.mark.parametrize("fault", [OSError("no descriptors"), ValueError("?"), RecursionError("deep")])
async def test_a_fault_nobody_foresaw_is_a_failed_reading_and_not_the_last(
    issuer: Issuer, fault: Exception
) -> None:
    clock = ManualClock()
    source = FaultyKeys(issuer.url)
    ring = KeyRing(source, clock, issuer_id="main", on_change=lambda: None)
    source.fault = fault
    with pytest.raises(Unavailable):
        await ring.find("k1", "EdDSA")
    source.fault = None
    clock.advance(RETRY_S)
    assert await ring.find("k1", "EdDSA") is not None
    source.fault = fault
    clock.advance(URL_REFRESH_S)
    assert await ring.find("k1", "EdDSA") is not None  # Answered with the keys at hand.
    await until(lambda: ring.recheck_at == clock.monotonic() + RETRY_S)


# --- answers that are not believed ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(issuer: Issuer, status: int) -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    issuer.answer = redirect
    with pytest.raises(KeysRefused):
        await UrlKeys(issuer.url).load()
    assert issuer.elsewhere_hits == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_has_a_limit_of_size(issuer: Issuer, streamed: bool) -> None:  # noqa: FBT001
    def sized(size: int) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            text = jwks(jwk(ed_key(), kid="k1"))
            body = (text + " " * (size - len(text))).encode()
            if not streamed:
                return web.Response(body=body)
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            for start in range(0, len(body), 50_000):
                await response.write(body[start : start + 50_000])
            return response

        return answer

    issuer.answer = sized(JWKS_BYTES_MAX)
    await UrlKeys(issuer.url).load()
    issuer.answer = sized(JWKS_BYTES_MAX + 1)
    with pytest.raises(KeysRefused):
        await UrlKeys(issuer.url).load()


async def test_a_compressed_answer_is_not_opened(issuer: Issuer) -> None:
    async def compressed(_: web.Request) -> web.StreamResponse:
        response = web.Response(text=jwks(jwk(ed_key(), kid="k1")))
        response.enable_compression(web.ContentCoding.gzip)
        return response

    issuer.answer = compressed
    with pytest.raises(KeysRefused):
        await UrlKeys(issuer.url).load()


async def test_nothing_of_the_answer_is_kept_in_an_error(issuer: Issuer) -> None:
    async def leaking(_: web.Request) -> web.StreamResponse:
        return web.Response(text='{"keys": "hunter2')

    issuer.answer = leaking
    with pytest.raises(KeysRefused) as caught:
        await UrlKeys(issuer.url).load()
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.test/jwks",
        "http://10.0.0.1/jwks",
        "http://127.0.0.1.evil.test/jwks",
        "http://localhost.evil.test/jwks",
        "http://localhost@evil.test/jwks",
        "https://user:pass@issuer.test/jwks",  # pragma: allowlist secret
        "https://user@issuer.test/jwks",
        "ftp://127.0.0.1/jwks",
        "file:///etc/passwd",
        "https:///jwks",
        "https://issuer.test:port/jwks",
        "http://[::1",
        "//127.0.0.1/jwks",
        "jwks",
        "",
    ],
)
def test_only_https_and_this_host_are_asked(url: str) -> None:
    with pytest.raises(KeysRefused):
        check_jwks_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.test/jwks",
        "http://127.0.0.1:5/j",
        "http://127.9.9.9/j",
        "http://[::1]/j",
        "http://localhost/j",
    ],
)
def test_https_and_this_host_are_asked(url: str) -> None:
    check_jwks_url(url)


# --- files ---


async def test_a_key_file_has_a_limit_of_size_and_is_a_file(world: World) -> None:
    text = jwks(jwk(ed_key(), kid="k1"))
    path = world.path / "big.json"
    path.write_text(text + " " * (JWKS_BYTES_MAX - len(text)))
    await FileKeys(path).load()
    path.write_text(text + " " * (JWKS_BYTES_MAX + 1 - len(text)))
    for odd in (path, world.path, world.path / "missing.json"):
        with pytest.raises(KeysRefused):
            await FileKeys(odd).load()


async def test_a_key_file_changed_in_place_is_seen_within_a_second(world: World) -> None:
    await world.contexts.context(world.token())
    world.jwks_path.write_text(jwks(jwk(ed_key(), kid="k1"), jwk(ed_key("two"), kid="k2")))
    await world.pass_time(1)
    assert (await world.contexts.context(with_key(world, "k2", "two"))).user_id == "ada"
