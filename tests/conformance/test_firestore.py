"""What is Firestore's own: tokens, documents of other hands, statuses, and what provisioning asks of it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import msgspec
import pytest
import pytest_asyncio
from google.cloud.firestore_admin_v1.types import database, field, firestore_admin
from google.longrunning.operations_pb2 import Operation  # type: ignore[import-untyped]

from engines.drivers.documents.firestore import Config, open_driver, provisioning
from engines.drivers.documents.firestore.connection import CODES
from engines.drivers.documents.firestore.documents import TOKENS_MAX, FirestoreDocuments, _Tokens
from engines.drivers.documents.firestore.messages import (
    EXPIRES_AT_MAX,
    EXPIRES_AT_MIN,
    CommitRequest,
    CommitResponse,
    Layout,
)
from engines.errors import BackendRefused, Conflict, Corrupt, EnginesError, OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT, Delete, DocumentDriver, Match, Op
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import PARTITION, bodies, get, put, read_keys, refused, write
from tests.servers.firestore import FirestoreServer

COMMIT = "/google.firestore.v1.Firestore/Commit"
ADMIN = "google.firestore.admin.v1.FirestoreAdmin"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(firestore_server: FirestoreServer) -> FirestoreServer:
    firestore_server.start()
    firestore_server.clear()
    return firestore_server


@pytest.fixture
def config(server: FirestoreServer) -> Config:
    return Config(
        project=server.project,
        collection=f"own_{uuid.uuid4().hex}",
        endpoint=server.endpoint,
        manage_indexes=False,
    )


@pytest_asyncio.fixture
async def driver(config: Config, clock: ManualClock) -> AsyncIterator[DocumentDriver]:
    opened = open_driver(config, {}, clock)
    yield opened
    await opened.close()


async def commit_raw(config: Config, *writes: Mapping[str, Any]) -> None:
    """Write documents as another program would, through the service's own messages."""
    layout = Layout(config.project, config.database, config.collection)
    async with grpc.aio.insecure_channel(config.endpoint) as channel:
        commit = channel.unary_unary(
            COMMIT,
            request_serializer=CommitRequest.SerializeToString,
            response_deserializer=CommitResponse.FromString,
        )
        await commit(CommitRequest(database=layout.database, writes=writes))


def document(config: Config, key: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    name = Layout(config.project, config.database, config.collection).prefix(PARTITION) + key
    return {"update": {"name": name, "fields": fields}}


class TestTokens:
    async def test_versions_outlive_a_restart_that_renews_every_token(
        self, driver: DocumentDriver, server: FirestoreServer
    ) -> None:
        version = await write(driver, put("k1", "1"), put("k2", "1"), put("k3", "1"))
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while True:
                try:
                    await get(driver, "k0")
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        # The driver still holds the tokens of before, which are stale now.
        assert await refused(driver, put("k1", "x", Match("0" * 32))) == ("k1",)
        second = await write(driver, put("k1", "2", Match(version)))
        assert await refused(driver, put("k1", "x", Match(version))) == ("k1",)
        await write(
            driver, put("k1", "3", Match(second)), put("k2", "3", Match(version)), put("k4", "3", ABSENT)
        )
        await write(driver, Delete("k3", Match(version)))
        assert await bodies(driver, "k1", "k2", "k3", "k4") == {"k1": "3", "k2": "3", "k4": "3"}

    async def test_a_version_that_another_client_wrote_is_matched_without_having_been_read(
        self, driver: DocumentDriver, config: Config, clock: ManualClock
    ) -> None:
        other = open_driver(config, {}, clock)
        version = await write(other, put("k1", "1"), put("k2", "1"))
        await write(driver, put("k1", "2", Match(version)), Delete("k2", Match(version)))
        # The other one's token is of a version that is gone.
        assert await refused(other, put("k1", "3", Match(version))) == ("k1",)
        assert await bodies(other, "k1", "k2") == {"k1": "2"}
        await other.close()

    async def test_a_document_made_again_under_its_old_version_is_matched(
        self, driver: DocumentDriver, config: Config, clock: ManualClock
    ) -> None:
        """As a mover does: the same write id, another token."""
        version = "d" * 32
        await write(driver, put("k1", "1", write_id=version))
        other = open_driver(config, {}, clock)
        await write(other, Delete("k1", Match(version)))
        await write(other, put("k1", "1", ABSENT, write_id=version))
        await other.close()
        await write(driver, put("k1", "2", Match(version)))
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_a_put_that_changes_nothing_leaves_its_version_matchable(
        self, driver: DocumentDriver
    ) -> None:
        version = "d" * 32
        for _ in range(2):
            await write(driver, put("k1", "1", write_id=version))
        await write(driver, put("k1", "2", Match(version)))

    def test_the_memory_of_tokens_has_an_end_and_forgets_the_oldest(self) -> None:
        tokens = _Tokens()
        for number in range(TOKENS_MAX + 10):
            tokens.put(PARTITION, f"k{number}", "v", (number, 0))
        assert tokens.get(PARTITION, "k9", "v") is None
        assert tokens.get(PARTITION, "k10", "v") == (10, 0)
        assert tokens.get(PARTITION, "k10", "another") is None
        assert len(tokens._entries) == TOKENS_MAX


STRANGERS: dict[str, Mapping[str, Any]] = {
    "no field of ours": {"name": {"string_value": "a"}},
    "a body of another type": {
        "body": {"integer_value": 1},
        "version": {"string_value": "v"},
        "key": {"string_value": "k2"},
    },
    "no version": {"body": {"string_value": "1"}, "key": {"string_value": "k2"}},
    "another key": {
        "body": {"string_value": "1"},
        "version": {"string_value": "v"},
        "key": {"string_value": "k3"},
    },
    "an expiry of another type": {
        "body": {"string_value": "1"},
        "version": {"string_value": "v"},
        "key": {"string_value": "k2"},
        "exp": {"integer_value": 5},
    },
    "an expiry between seconds": {
        "body": {"string_value": "1"},
        "version": {"string_value": "v"},
        "key": {"string_value": "k2"},
        "exp": {"timestamp_value": {"seconds": 5, "nanos": 1_000}},
    },
}


class TestDocuments:
    @pytest.mark.parametrize("fields", STRANGERS.values(), ids=STRANGERS.keys())
    async def test_a_document_of_another_hand_is_corrupt_and_named(
        self, driver: DocumentDriver, config: Config, fields: Mapping[str, Any]
    ) -> None:
        await write(driver, put("k1"), put("k3"))
        await commit_raw(config, document(config, "k2", fields))
        for call in (
            driver.get(PARTITION, ["k1", "k2"]),
            driver.scan(PARTITION, above="A", below="~", limit=10, reverse=False),
            driver.write(PARTITION, [put("k2", "1", ABSENT)], write_id="a" * 32),
        ):
            with pytest.raises(Corrupt, match="k2"):
                await call
        assert await bodies(driver, "k1", "k3") == {"k1": "{}", "k3": "{}"}

    @pytest.mark.parametrize("expires_at", [EXPIRES_AT_MAX + 1, EXPIRES_AT_MIN - 1, 2**70])
    async def test_an_expiry_that_no_timestamp_holds_is_refused_whole(
        self, driver: DocumentDriver, expires_at: int
    ) -> None:
        with pytest.raises(BackendRefused):
            await write(driver, put("k1"), put("k2", expires_at=expires_at))
        assert await read_keys(driver) == []
        await write(driver, put("k1", expires_at=EXPIRES_AT_MAX))
        found = await get(driver, "k1")
        assert found is not None
        assert found.expires_at == EXPIRES_AT_MAX

    async def test_half_a_character_is_refused_whole(self, driver: DocumentDriver) -> None:
        with pytest.raises(BackendRefused):
            await write(driver, put("k1"), put("k2", '"\ud800"'))
        assert await read_keys(driver) == []

    async def test_of_many_creators_over_an_expired_document_one_wins(
        self, driver: DocumentDriver, config: Config, clock: ManualClock
    ) -> None:
        other = open_driver(config, {}, clock)
        for turn in range(8):
            key = f"k{turn}"
            await write(driver, put(key, "old", expires_at=int(clock.now()) + 10))
            clock.advance(20)
            results = await asyncio.gather(
                *(write((driver, other)[n % 2], put(key, str(n), ABSENT)) for n in range(8)),
                return_exceptions=True,
            )
            winners = [result for result in results if isinstance(result, str)]
            found = await get(driver, key)
            assert found is not None
            assert [found.version] == winners
            losers = [result for result in results if not isinstance(result, str)]
            assert {type(result) for result in losers} <= {Conflict, Unavailable}
        await other.close()

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    async def test_a_page_that_ends_with_its_range_says_so(
        self, driver: DocumentDriver, *, reverse: bool
    ) -> None:
        await write(driver, put("k1"), put("k2"), put("k3"))
        for limit, ended in ((2, False), (3, True), (4, True)):
            page = await driver.scan(PARTITION, above="A", below="~", limit=limit, reverse=reverse)
            assert (len(page.docs), page.resume is None) == (min(limit, 3), ended)

    async def test_a_bound_may_hold_what_no_name_can(self, driver: DocumentDriver) -> None:
        await write(driver, *(put(key) for key in ("k", "k.", "k0", "k00")))
        for reverse in (False, True):
            above = await read_keys(driver, above="k/", reverse=reverse)
            below = await read_keys(driver, below="k/z", reverse=reverse)
            assert (sorted(above), sorted(below)) == (["k0", "k00"], ["k", "k."])

    async def test_an_expired_document_stays_where_the_batch_over_it_fails(
        self, driver: DocumentDriver, clock: ManualClock
    ) -> None:
        await write(driver, put("k1", "old", expires_at=int(clock.now()) + 10), put("k2"))
        clock.advance(20)
        assert await refused(driver, put("k1", "new", ABSENT), put("k2", "new", ABSENT)) == ("k2",)
        clock.jump(-20)
        assert await bodies(driver, "k1") == {"k1": "old"}


# --- statuses, from a server that gives the one it is asked for ---


class Answering(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each call with one status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code = code
        self._details = details

    def service(self, details: Any) -> Any:
        async def unary(_request: bytes, context: Any) -> bytes:
            await context.abort(self._code, self._details)
            return b""

        async def stream(_request: bytes, context: Any) -> AsyncIterator[bytes]:
            await context.abort(self._code, self._details)
            yield b""

        if details.method == COMMIT:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.unary_stream_rpc_method_handler(stream)


async def nothing(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    """A stream that ends at once."""
    empty: tuple[bytes, ...] = ()
    for reply in empty:
        yield reply


async def started(handler: grpc.GenericRpcHandler) -> tuple[Any, str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


Answer = Callable[..., Any]


@pytest_asyncio.fixture
async def answering() -> AsyncIterator[Answer]:
    opened: list[tuple[Any, DocumentDriver]] = []

    async def open_at(code: grpc.StatusCode, details: str = "hunter2") -> DocumentDriver:
        server, endpoint = await started(Answering(code, details))
        client = open_driver(Config(project="demo-x", endpoint=endpoint), {}, ManualClock())
        opened.append((server, client))
        return client

    yield open_at
    for server, client in opened:
        await client.close()
        await server.stop(None)


CONDITION_CODES = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
}


class TestStatuses:
    def test_every_status_of_grpc_is_in_the_table(self) -> None:
        assert set(CODES) == set(grpc.StatusCode)

    @pytest.mark.parametrize("code", [code for code in CODES if code is not grpc.StatusCode.OK])
    async def test_a_status_of_the_service_means_what_the_table_says(
        self, answering: Answer, code: grpc.StatusCode
    ) -> None:
        client = await answering(code)
        reading = Unavailable if CODES[code] is OutcomeUnknown else CODES[code]
        calls: list[tuple[Any, type[EnginesError]]] = [
            (write(client, put("k1")), CODES[code]),
            (get(client, "k1"), reading),
            (client.scan(PARTITION, above="A", below="~", limit=1, reverse=True), reading),
            # Under a condition these say that one was false, and the read that looks which meets them again.
            (write(client, put("k1", "1", ABSENT)), reading if code in CONDITION_CODES else CODES[code]),
        ]
        for call, expected in calls:
            with pytest.raises(EnginesError) as caught:
                await call
            assert type(caught.value) is expected
            assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            (grpc.StatusCode.PERMISSION_DENIED, "roles/datastore.user"),
            (grpc.StatusCode.NOT_FOUND, "gcloud firestore databases create"),
            (grpc.StatusCode.UNAUTHENTICATED, "renew"),
        ],
    )
    async def test_a_refusal_tells_the_operator_what_to_do(
        self, answering: Answer, code: grpc.StatusCode, remedy: str
    ) -> None:
        client = await answering(code)
        with pytest.raises(BackendRefused, match=remedy):
            await write(client, put("k1"))

    async def test_a_failed_precondition_whose_culprit_is_gone_is_unavailable(self) -> None:
        class Refusing(Answering):
            """Refuses commits for a condition, and finds no document."""

            def service(self, details: Any) -> Any:
                if details.method == COMMIT:
                    return super().service(details)

                return grpc.unary_stream_rpc_method_handler(nothing)

        server, endpoint = await started(Refusing(grpc.StatusCode.ALREADY_EXISTS, "there is one"))
        client = open_driver(Config(project="demo-x", endpoint=endpoint), {}, ManualClock())
        with pytest.raises(Unavailable):
            await write(client, put("k1", "1", ABSENT))
        with pytest.raises(Conflict):
            await write(client, put("k1", "1", Match("a" * 32)))
        await client.close()
        await server.stop(None)

    async def test_a_name_that_does_not_resolve_is_unavailable_even_to_a_write(self) -> None:
        client = open_driver(Config(project="demo-x", endpoint="nowhere.invalid:1"), {}, ManualClock())
        ops: list[Op] = [put("k1")]
        with pytest.raises(Unavailable):
            await write(client, *ops)
        await client.close()


# --- credentials ---


class TestCredentials:
    @pytest.mark.parametrize("key", ["hunter2", "[]", '{"private_key": "hunter2"}'])
    async def test_a_secret_that_is_no_key_is_refused_and_not_repeated(self, key: str) -> None:
        client = open_driver(Config(project="a-project"), {"service_account": Secret(key)}, ManualClock())
        with pytest.raises(BackendRefused) as caught:
            await get(client, "k1")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        await client.close()

    async def test_without_an_endpoint_nothing_goes_to_an_emulator_that_the_environment_names(
        self, server: FirestoreServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.endpoint)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
        client = open_driver(Config(project=server.project), {}, ManualClock())
        with pytest.raises(BackendRefused, match="service_account"):
            await get(client, "k1")
        await client.close()


# --- provisioning, on a server that speaks the Admin API's own messages ---


class Admin(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One database's fields, as the Admin API shows and changes them; everything else finds nothing."""

    def __init__(self, kind: int, *, undone: int = 0) -> None:
        """`undone`: how many changes of fields meet another one, and are not made."""
        self._kind = kind
        self._undone = undone
        self.fields: dict[str, Any] = {}
        self.updates: list[str] = []
        self.routes: dict[str, str] = {}

    def service(self, details: Any) -> Any:
        headers = dict(details.invocation_metadata)
        self.routes[details.method.rpartition("/")[2]] = headers["x-goog-request-params"]
        assert headers["google-cloud-resource-prefix"] == "projects/demo-x/databases/(default)"
        calls: dict[str, tuple[Any, Any]] = {
            "GetDatabase": (self._get_database, firestore_admin.GetDatabaseRequest),
            "GetField": (self._get_field, firestore_admin.GetFieldRequest),
            "UpdateField": (self._update_field, firestore_admin.UpdateFieldRequest),
        }
        service, _, method = details.method[1:].partition("/")
        if service != ADMIN:
            return grpc.unary_stream_rpc_method_handler(nothing)
        answer, request = calls[method]
        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.pb().FromString,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    async def _get_database(self, request: Any, _context: Any) -> Any:
        return database.Database.pb()(name=request.name, type_=self._kind)

    async def _get_field(self, request: Any, _context: Any) -> Any:
        inherited = field.Field.pb()(name=request.name)
        inherited.index_config.uses_ancestor_config = True
        inherited.index_config.indexes.add()
        return self.fields.get(request.name, inherited)

    async def _update_field(self, request: Any, context: Any) -> Any:
        if self._undone > 0:
            self._undone -= 1
            await context.abort(grpc.StatusCode.ABORTED, "please retry, underlying data changed")
        self.updates.append(request.field.name)
        if self.updates.count(request.field.name) > 1:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "an operation is under way")
        stored = field.Field.pb()(name=request.field.name)
        stored.index_config.uses_ancestor_config = "index_config" not in request.update_mask.paths
        if "ttl_config" in request.update_mask.paths:
            stored.ttl_config.CopyFrom(request.field.ttl_config)
        self.fields[request.field.name] = stored
        return Operation(name="o")


NATIVE = int(database.Database.DatabaseType.FIRESTORE_NATIVE)
DATASTORE = int(database.Database.DatabaseType.DATASTORE_MODE)


class TestProvisioning:
    async def provision(self, admin: Admin, times: int) -> None:
        server, endpoint = await started(admin)
        client = open_driver(
            Config(project="demo-x", collection="ours", endpoint=endpoint), {}, ManualClock()
        )
        try:
            for _ in range(times):
                await client.provision()
        finally:
            await client.close()
            await server.stop(None)

    async def test_bodies_versions_and_expiries_are_exempted_once_and_expiries_get_the_policy(self) -> None:
        admin = Admin(NATIVE)
        await self.provision(admin, times=2)
        where = "projects/demo-x/databases/(default)/collectionGroups/ours/fields/"
        assert sorted(admin.updates) == [f"{where}{name}" for name in ("body", "exp", "version")]
        assert all(not found.index_config.uses_ancestor_config for found in admin.fields.values())
        assert [name for name, found in admin.fields.items() if found.HasField("ttl_config")] == [
            f"{where}exp"
        ]

    async def test_each_call_says_to_which_database_it_goes(self) -> None:
        """As the service's own library does: the service finds the database by this header."""
        admin = Admin(NATIVE)
        await self.provision(admin, times=1)
        where = "projects/demo-x/databases/%28default%29"
        assert admin.routes["GetDatabase"] == f"name={where}"
        assert admin.routes["UpdateField"].startswith(f"field.name={where}/collectionGroups/ours/fields/")
        assert admin.routes["BatchGetDocuments"] == f"database={where}"

    async def test_a_field_that_somebody_is_changing_at_this_moment_is_no_failure(self) -> None:
        admin = Admin(NATIVE)
        where = "projects/demo-x/databases/(default)/collectionGroups/ours/fields/"
        admin.updates = [f"{where}{name}" for name in ("body", "exp", "version")]
        await self.provision(admin, times=1)
        assert len(admin.updates) == 6

    async def test_a_change_that_the_service_undid_for_another_is_made_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provisioning, "PAUSES_S", (0.0, 0.0))
        admin = Admin(NATIVE, undone=2)
        await self.provision(admin, times=1)
        assert len(admin.fields) == 3
        with pytest.raises(Unavailable):
            await self.provision(Admin(NATIVE, undone=3), times=1)

    async def test_a_database_in_datastore_mode_is_refused(self) -> None:
        admin = Admin(DATASTORE)
        with pytest.raises(BackendRefused, match="Datastore mode"):
            await self.provision(admin, times=1)
        assert admin.updates == []

    async def test_an_emulator_without_the_admin_api_says_what_to_set(self, config: Config) -> None:
        client = open_driver(msgspec.structs.replace(config, manage_indexes=True), {}, ManualClock())
        with pytest.raises(BackendRefused, match="manage_indexes"):
            await client.provision()
        await client.close()


async def test_the_driver_is_what_opening_gives(driver: DocumentDriver) -> None:
    assert isinstance(driver, FirestoreDocuments)
