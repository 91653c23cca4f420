"""What PostgreSQL's errors mean, and what a record of its backend may hold. No server is needed."""

import asyncpg
import msgspec
import pytest

from engines.drivers.documents.postgres import Config, config_from_url
from engines.drivers.documents.postgres.sessions import CLIENT_ERRORS, SQLSTATES, meaning, translate
from engines.drivers.documents.postgres.statements import CONFLICT_SQLSTATE
from engines.errors import (
    BackendRefused,
    Conflict,
    Corrupt,
    EnginesError,
    Invalid,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)


def exception_classes() -> list[type[BaseException]]:
    return sorted(
        {
            kind
            for kind in vars(asyncpg.exceptions).values()
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
        },
        key=lambda kind: kind.__name__,
    )


class TestErrors:
    def test_every_exception_class_of_asyncpg_is_in_the_table(self) -> None:
        kinds = exception_classes()
        assert len(kinds) > 200
        for kind in kinds:
            sqlstate = getattr(kind, "sqlstate", None)
            if sqlstate is None:
                own = kind.__mro__[: kind.__mro__.index(Exception)]
                assert any(entry in CLIENT_ERRORS for entry in own), kind
            else:
                assert any(sqlstate[:length] in SQLSTATES for length in (5, 3, 2)), kind
            assert issubclass(meaning(kind.__new__(kind)), EnginesError)

    @pytest.mark.parametrize(
        ("sqlstate", "expected"),
        [
            ("40001", Unavailable),
            ("40P01", Unavailable),
            ("40003", OutcomeUnknown),
            ("55P03", Unavailable),
            ("57014", Unavailable),
            ("57P01", OutcomeUnknown),
            ("57P02", OutcomeUnknown),
            ("08006", OutcomeUnknown),
            ("08007", OutcomeUnknown),
            ("53300", Throttled),
            ("53200", Throttled),
            ("53100", BackendRefused),
            ("28P01", BackendRefused),
            ("42501", BackendRefused),
            ("42P01", BackendRefused),
            ("3D000", BackendRefused),
            ("25006", Unavailable),
            ("XX001", Corrupt),
            ("23505", BackendRefused),
            (CONFLICT_SQLSTATE, Conflict),
            ("ZZ999", BackendRefused),
        ],
    )
    def test_a_servers_reply_means_what_its_sqlstate_says(
        self, sqlstate: str, expected: type[EnginesError]
    ) -> None:
        error = asyncpg.PostgresError.new({"C": sqlstate, "M": "no", "D": "k1 k2", "S": "ERROR"})
        translated = translate(error, lost=OutcomeUnknown)
        assert type(translated) is expected
        if isinstance(translated, Conflict):
            assert translated.keys == ("k1", "k2")

    @pytest.mark.parametrize("lost", [OutcomeUnknown, Unavailable])
    def test_a_broken_connection_means_what_the_call_was(self, lost: type[EnginesError]) -> None:
        for error in (
            asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
            asyncpg.InterfaceError("connection is closed"),
            asyncpg.InternalClientError("lost its place"),
            ConnectionResetError(),
            TimeoutError(),
        ):
            assert type(translate(error, lost=lost)) is lost

    def test_no_detail_repeats_what_the_server_said(self) -> None:
        fields = {"C": "42501", "M": "hunter2", "D": "hunter2", "S": "ERROR"}
        assert "hunter2" not in str(translate(asyncpg.PostgresError.new(fields), lost=Unavailable))


class TestConfig:
    def test_a_url_becomes_a_config_without_its_password(self) -> None:
        config, password = config_from_url(
            "postgresql://app:p%40ss@db.example:6432/prod?schema=a_b&tls=require"  # pragma: allowlist secret
        )
        assert password == "p@ss"
        assert config == {
            "host": "db.example",
            "port": 6432,
            "database": "prod",
            "user": "app",
            "schema": "a_b",
            "pool_size": 10,
            "tls": "require",
        }
        assert Config(**config).tls_mode() == "require"

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://app:hunter2@/prod",  # pragma: allowlist secret
            "postgresql://app:hunter2@db",  # pragma: allowlist secret
            "postgresql://:hunter2@db/prod",
            "postgresql://app:hunt/er2@db/prod",
            "postgresql://app:hunter2@db:port/prod",  # pragma: allowlist secret
            "postgresql://app:hunter2@db:99999/prod",  # pragma: allowlist secret
            "postgresql://app:hunter2@db/prod?schema=a;b",  # pragma: allowlist secret
            "postgresql://app:hunter2@db/prod?sslmode=require",  # pragma: allowlist secret
            "postgresql://app:hunter2@db/prod?pool_size=0",  # pragma: allowlist secret
            "postgresql://app:hunter2@[db/prod",  # pragma: allowlist secret
            "mysql://app:hunter2@db/prod",  # pragma: allowlist secret
        ],
    )
    def test_a_bad_url_is_invalid_and_its_password_is_not_repeated(self, url: str) -> None:
        with pytest.raises(Invalid) as caught:
            config_from_url(url)
        assert "hunt" not in str(caught.value)
        assert "hunt" not in repr(caught.value.__cause__)

    @pytest.mark.parametrize("schema", ["a;b", 'a"b', "A", "", "pg_catalog", "a" * 64, "1a", "a b"])
    def test_a_schema_is_a_plain_name(self, schema: str) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"host": "h", "database": "d", "user": "u", "schema": schema}, Config)

    def test_a_config_has_no_room_for_a_password(self) -> None:
        assert not {"password", "secret", "url", "dsn"} & set(Config.__struct_fields__)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"host": "h", "database": "d", "user": "u", "password": "p"}, Config)

    @pytest.mark.parametrize(
        ("host", "mode"),
        [
            ("127.0.0.1", "disable"),
            ("::1", "disable"),
            ("localhost", "disable"),
            ("/run/postgresql", "disable"),
            ("127.evil.example", "verify-full"),
            ("localhost.example", "verify-full"),
            ("10.0.0.1", "verify-full"),
        ],
    )
    def test_tls_is_verified_unless_nothing_leaves_the_host(self, host: str, mode: str) -> None:
        assert Config(host=host, database="d", user="u").tls_mode() == mode
