"""The provider under the real OpenFeature SDK: values, reasons and errors as a program sees them."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import Reason

from engines.client import Engines, Evaluations
from engines.client.openfeature import EnginesProvider
from engines.errors import Invalid, NotFound
from engines.testing.clock import ManualClock
from tests.cli.lab import LabProcess
from tests.client.loopback import Answer, Drop, Loopback, problem
from tests.client.test_blocking import ServerThread
from tests.contract.cast import until

ADA = EvaluationContext("ada", {"plan": "pro"})
JSON = {"Content-Type": "application/json"}
Open = Callable[..., OpenFeatureClient]


def says(value: Any = None, **members: Any) -> Answer:
    """What the server says of one flag."""
    told = {"key": "flag", "reason": "TARGETING_MATCH", "variant": "v", "value": value, **members}
    return Answer(200, json={name: item for name, item in told.items() if item is not None})


def fails(status: int, code: str, **headers: str) -> Answer:
    body = {"key": "flag", "errorCode": code, "errorDetails": "on purpose"}
    return Answer(status, json=body, headers={**JSON, **headers})


def bulk(etag: str = '"1"', **values: Any) -> Answer:
    flags = [
        {"key": key, "reason": "STATIC", "variant": "v", "value": value} for key, value in values.items()
    ]
    return Answer(200, json={"flags": flags}, headers={"ETag": etag})


@pytest.fixture
def server() -> Iterator[Loopback]:
    running = ServerThread()
    assert running.server is not None
    yield running.server
    running.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def open_client(server: Loopback, clock: ManualClock) -> Iterator[Open]:
    """A client of the SDK whose provider asks the scripted server."""

    def open_it(**options: Any) -> OpenFeatureClient:
        api.set_provider_and_wait(EnginesProvider(server.url, "t0k", clock=clock, **options))
        return api.get_client()

    yield open_it
    api.clear_providers()
    assert not [thread for thread in threading.enumerate() if thread.name == "engines-client"]


class TestValues:
    def test_every_type_and_what_is_sent(self, server: Loopback, open_client: Open) -> None:
        client = open_client(tenant_id="t_one", surface_id="chat")
        server.script += [says(value=True), says("s"), says(7), says(0.5), says({"a": [1]})]
        assert client.get_boolean_value("f", default_value=False, evaluation_context=ADA) is True
        assert client.get_string_value("f", "", ADA) == "s"
        assert client.get_integer_value("f", 0, ADA) == 7
        assert client.get_float_value("f", 0.0, ADA) == 0.5
        assert client.get_object_value("f", {}, ADA) == {"a": [1]}
        first = server.received[0]
        assert (first.method, first.path) == ("POST", "/ofrep/v1/evaluate/flags/f")
        assert first.json == {"context": {"targetingKey": "ada", "plan": "pro"}}
        assert first.headers["Authorization"] == "Bearer t0k"
        assert (first.headers["X-Tenant-Id"], first.headers["X-Surface-Id"]) == ("t_one", "chat")
        assert "Idempotency-Key" not in first.headers

    async def test_the_same_without_blocking_the_callers_loop(
        self, server: Loopback, open_client: Open
    ) -> None:
        client = open_client()
        server.otherwise = lambda _: says(value=True)
        found = await asyncio.gather(
            *(client.get_boolean_value_async("f", default_value=False) for _ in range(20))
        )
        assert found == [True] * 20
        server.script += [says("s"), says(7), says(0.5), says([1])]
        assert await client.get_string_value_async("f", "", ADA) == "s"
        assert await client.get_integer_value_async("f", 0, ADA) == 7
        assert await client.get_float_value_async("f", 0.0, ADA) == 0.5
        assert await client.get_object_value_async("f", [], ADA) == [1]

    def test_details(self, server: Loopback, open_client: Open) -> None:
        server.script.append(says("s", metadata={"owner": "web"}))
        details = open_client().get_string_details("f", "", ADA)
        assert (details.reason, details.variant) == (Reason.TARGETING_MATCH, "v")
        assert details.flag_metadata == {"owner": "web"}
        assert details.error_code is None

    @pytest.mark.parametrize("reason", ["DISABLED", "DEFAULT"])
    def test_without_a_value_the_programs_default_is_used_and_it_is_no_error(
        self, server: Loopback, open_client: Open, reason: str
    ) -> None:
        server.script.append(Answer(200, json={"key": "f", "reason": reason}))
        details = open_client().get_integer_details("f", 42, ADA)
        assert (details.value, details.reason, details.error_code) == (42, reason, None)

    def test_numbers_are_never_rounded(self, server: Loopback, open_client: Open) -> None:
        client = open_client()
        server.script += [says(10.0), says(3), says(3.5)]
        whole = client.get_integer_value("f", 0)
        assert (whole, type(whole)) == (10, int)
        assert type(client.get_float_value("f", 0.0)) is float
        assert client.get_integer_details("f", 1).error_code is ErrorCode.TYPE_MISMATCH

    @pytest.mark.parametrize(
        ("value", "ask"),
        [
            (1, "boolean"),
            ("true", "boolean"),
            (True, "integer"),
            (True, "float"),
            ("1", "float"),
            (1, "string"),
            ("{}", "object"),
        ],
    )
    def test_a_value_of_another_type_is_a_mismatch(
        self, server: Loopback, open_client: Open, value: Any, ask: str
    ) -> None:
        server.script.append(says(value))
        default = {"boolean": False, "integer": 5, "float": 0.5, "string": "d", "object": {"d": 1}}[ask]
        details = getattr(open_client(), f"get_{ask}_details")("f", default, ADA)
        assert (details.value, details.error_code) == (default, ErrorCode.TYPE_MISMATCH)
        assert details.reason == Reason.ERROR

    def test_a_context_may_hold_what_json_can_write(self, server: Loopback, open_client: Open) -> None:
        since = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
        server.script.append(says("s"))
        open_client().get_string_value("f", "", EvaluationContext(None, {"since": since}))
        assert server.received[0].json == {"context": {"since": "2026-01-02T00:00:00Z"}}


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (fails(404, "FLAG_NOT_FOUND"), ErrorCode.FLAG_NOT_FOUND),
            (fails(400, "INVALID_CONTEXT"), ErrorCode.INVALID_CONTEXT),
            (fails(400, "PARSE_ERROR"), ErrorCode.PARSE_ERROR),
            (fails(400, "GENERAL"), ErrorCode.GENERAL),
            (fails(400, "SOMETHING_NEW"), ErrorCode.GENERAL),
            (fails(401, "GENERAL"), ErrorCode.GENERAL),
            (fails(503, "GENERAL"), ErrorCode.GENERAL),
            (problem(404, "NotFound"), ErrorCode.GENERAL),
            (Answer(200, raw=b"<html>"), ErrorCode.GENERAL),
            (Drop(), ErrorCode.GENERAL),
        ],
    )
    def test_an_error_is_the_programs_default_with_its_code(
        self, server: Loopback, open_client: Open, answer: Any, code: ErrorCode
    ) -> None:
        server.script.append(answer)
        details = open_client().get_string_details("f", "mine", ADA)
        assert (details.value, details.reason, details.error_code) == ("mine", Reason.ERROR, code)
        assert len(server.received) == 1, "it is not asked again: a default is better than a wait"

    def test_no_server_at_all(self, clock: ManualClock) -> None:
        api.set_provider_and_wait(EnginesProvider("http://127.0.0.1:9", clock=clock))
        assert api.get_client().get_string_details("f", "mine").error_code is ErrorCode.GENERAL
        api.clear_providers()

    @pytest.mark.parametrize("key", ["../../me", "a b", "", "a/b", "x" * 200])
    def test_a_key_that_no_flag_can_have_is_not_sent(
        self, server: Loopback, open_client: Open, key: str
    ) -> None:
        details = open_client().get_string_details(key, "mine", ADA)
        assert details.error_code is ErrorCode.FLAG_NOT_FOUND
        assert server.received == []

    def test_after_a_429_nothing_is_sent_until_the_server_said(
        self, server: Loopback, open_client: Open, clock: ManualClock
    ) -> None:
        client = open_client()
        server.script += [fails(429, "GENERAL", **{"Retry-After": "7"}), says("back")]
        for _ in range(3):
            assert client.get_string_value("f", "mine", ADA) == "mine"
        clock.advance(6.9)
        assert client.get_string_value("f", "mine", ADA) == "mine"
        assert len(server.received) == 1
        clock.advance(0.1)
        assert client.get_string_value("f", "mine", ADA) == "back"

    def test_a_provider_that_was_not_begun_or_was_shut_down_says_so(self, server: Loopback) -> None:
        provider = EnginesProvider(server.url)
        with pytest.raises(ProviderNotReadyError):
            provider.resolve_string_details("f", "d")
        provider.initialize(EvaluationContext())
        provider.shutdown()
        provider.shutdown()
        with pytest.raises(ProviderNotReadyError):
            provider.resolve_string_details("f", "d")

    def test_a_url_that_is_none_is_refused_at_once(self) -> None:
        with pytest.raises(Invalid):
            EnginesProvider("localhost:8080")


class TestKept:
    def test_all_flags_are_asked_once_for_each_context(self, server: Loopback, open_client: Open) -> None:
        client = open_client(age_max_s=5.0)
        server.script += [bulk(a=1, b="two"), bulk(a=2)]
        assert client.get_integer_value("a", 0, ADA) == 1
        assert client.get_string_value("b", "", ADA) == "two"
        assert client.get_integer_value("a", 0, EvaluationContext("bob")) == 2
        assert [received.path for received in server.received] == ["/ofrep/v1/evaluate/flags"] * 2
        assert server.received[1].json == {"context": {"targetingKey": "bob"}}

    def test_the_order_of_a_contexts_members_makes_no_other_context(
        self, server: Loopback, open_client: Open
    ) -> None:
        client = open_client(age_max_s=5.0)
        server.script.append(bulk(a=1))
        for attributes in ({"x": 1, "y": 2}, {"y": 2, "x": 1}):
            assert client.get_integer_value("a", 0, EvaluationContext("u", attributes)) == 1
        assert len(server.received) == 1

    def test_what_is_too_old_is_asked_anew_with_its_etag(
        self, server: Loopback, open_client: Open, clock: ManualClock
    ) -> None:
        client = open_client(age_max_s=5.0)
        server.script += [bulk(a=1), Answer(304), bulk('"2"', a=2)]
        seen = []
        for _ in range(3):
            seen.append(client.get_integer_value("a", 0, ADA))
            clock.advance(4.9)
            seen.append(client.get_integer_value("a", 0, ADA))
            clock.advance(0.1)
        assert seen == [1, 1, 1, 1, 2, 2]
        assert [received.headers.get("If-None-Match") for received in server.received] == [None, '"1"', '"1"']

    def test_what_is_too_old_is_never_used(
        self, server: Loopback, open_client: Open, clock: ManualClock
    ) -> None:
        client = open_client(age_max_s=5.0)
        server.script += [bulk(a=1), Drop()]
        assert client.get_integer_value("a", 0, ADA) == 1
        clock.advance(5.0)
        details = client.get_integer_details("a", 99, ADA)
        assert (details.value, details.error_code) == (99, ErrorCode.GENERAL)

    def test_a_flag_that_is_not_among_them_and_one_that_failed(
        self, server: Loopback, open_client: Open
    ) -> None:
        client = open_client(age_max_s=5.0)
        broken = {"key": "broken", "errorCode": "PARSE_ERROR", "errorDetails": "on purpose"}
        server.script.append(Answer(200, json={"flags": [broken]}, headers={"ETag": '"1"'}))
        assert client.get_integer_details("gone", 1, ADA).error_code is ErrorCode.FLAG_NOT_FOUND
        assert client.get_integer_details("broken", 1, ADA).error_code is ErrorCode.PARSE_ERROR
        assert len(server.received) == 1

    async def test_however_many_ask_at_once_one_request_is_sent(
        self, server: Loopback, open_client: Open
    ) -> None:
        client = open_client(age_max_s=5.0)
        server.script.append(bulk(a=1))
        found = await asyncio.gather(*(client.get_integer_value_async("a", 0, ADA) for _ in range(50)))
        assert found == [1] * 50
        assert len(server.received) == 1


class TestRealServer:
    """From a definition to a value in a program, over everything that lies between."""

    @pytest.fixture
    def member(self, lab: LabProcess) -> Iterator[Engines]:
        with Engines(lab.file.url, lab.file.user("member").token) as client:
            yield client

    @pytest.fixture
    def open_lab(self, lab: LabProcess) -> Iterator[Open]:
        def open_it(**options: Any) -> OpenFeatureClient:
            api.set_provider_and_wait(EnginesProvider(lab.file.url, lab.file.user("viewer").token, **options))
            return api.get_client()

        yield open_it
        api.clear_providers()

    def define(self, member: Engines, key: str, variants: dict[str, Any], **members: Any) -> None:
        blob = {"state": "ENABLED", "variants": variants, "defaultVariant": next(iter(variants)), **members}
        member.flags.create(blob, definition_id=key)

    @pytest.mark.parametrize("age_max_s", [None, 5.0])
    def test_every_type_with_targeting_and_a_rollout(
        self, member: Engines, open_lab: Open, age_max_s: float | None
    ) -> None:
        kept = f"kept-{age_max_s}"
        rule = {"if": [{"==": [{"var": "plan"}, "pro"]}, {"fractional": [["b", 1]]}]}
        for name, first, second in (
            ("boolean", False, True),
            ("string", "a", "b"),
            ("integer", 1, 2),
            ("float", 0.5, 1.5),
            ("object", {"a": 1}, {"b": [2]}),
        ):
            self.define(member, f"{kept}-{name}", {"a": first, "b": second}, targeting=rule)
        client = open_lab(age_max_s=age_max_s)
        assert client.get_boolean_value(f"{kept}-boolean", default_value=False, evaluation_context=ADA)
        assert client.get_string_value(f"{kept}-string", "", ADA) == "b"
        assert client.get_integer_value(f"{kept}-integer", 0, ADA) == 2
        assert client.get_float_value(f"{kept}-float", 0.0, ADA) == 1.5
        assert client.get_object_value(f"{kept}-object", {}, ADA) == {"b": [2]}
        details = client.get_string_details(f"{kept}-string", "", EvaluationContext("bob"))
        assert (details.value, details.reason, details.variant) == ("a", Reason.DEFAULT, "a")
        assert client.get_string_details("nobody", "d", ADA).error_code is ErrorCode.FLAG_NOT_FOUND
        mismatch = client.get_integer_details(f"{kept}-string", 7, ADA)
        assert (mismatch.value, mismatch.error_code) == (7, ErrorCode.TYPE_MISMATCH)

    async def test_a_change_reaches_a_program_within_two_seconds(
        self, member: Engines, open_lab: Open
    ) -> None:
        """One for the server, and here another for what the provider keeps."""
        self.define(member, "switch", {"off": False, "on": True})
        client = open_lab(age_max_s=1.0)

        async def becomes(*, wanted: bool) -> None:
            async with asyncio.timeout(20):  # Two ages of a second, on a machine that may pause.
                while await client.get_boolean_value_async("switch", not wanted) is not wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        await becomes(wanted=False)
        entry = await asyncio.to_thread(member.flags.get, "switch")
        changed = {**entry.json_blob, "defaultVariant": "on"}
        await asyncio.to_thread(member.flags.put, "switch", changed, if_match=entry.etag)
        await becomes(wanted=True)

    def test_the_clients_own_methods(self, member: Engines) -> None:
        self.define(member, "own", {"a": 1}, metadata={"owner": "web"})
        found = member.ofrep.evaluate("own", {})
        assert (found.value, found.reason, found.variant, found.metadata) == (
            1,
            "STATIC",
            "a",
            {"owner": "web"},
        )

        def all_flags() -> Evaluations:
            every = member.ofrep.evaluate_all({})
            assert every is not None
            return every

        until(lambda: "own" in {flag.key for flag in all_flags().flags})
        every = all_flags()
        assert member.ofrep.evaluate_all({}, known_etag=every.etag) is None
        with pytest.raises(NotFound) as missing:
            member.ofrep.evaluate("nobody", {})
        assert missing.value.reason_code == "FLAG_NOT_FOUND"
        with pytest.raises(Invalid) as refused:
            member.ofrep.evaluate("own", {"targetingKey": 7})
        assert refused.value.reason_code == "INVALID_CONTEXT"
