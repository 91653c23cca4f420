"""What every driver of the registry says of itself, and that it opens nothing before it is used."""

import threading
from pathlib import Path

import msgspec
import pytest

from engines.drivers.registry import DOCUMENT_DRIVERS, URL_SCHEMES, document_driver, driver_of_url
from engines.errors import Invalid
from engines.testing.documents import DocumentHarness

CLASSES = {"cloud", "server", "host_local"}
URLS = {
    "sqlite": "sqlite:///nowhere/a.db",
    "dynamodb": "dynamodb://eu-central-1/engines?endpoint=http://192.0.2.1:8000",
    "postgresql": "postgresql://u:hunter2@192.0.2.1/d",  # pragma: allowlist secret
    "firestore": "firestore://a-project/a-database?collection=elsewhere&endpoint=192.0.2.1:8080",
    "cosmos": "cosmos://:hunter2@192.0.2.1/d/c",  # pragma: allowlist secret
}


@pytest.mark.parametrize("name", DOCUMENT_DRIVERS)
class TestDescription:
    def test_it_bears_the_name_under_which_it_is_registered(self, name: str) -> None:
        description = document_driver(name).DESCRIPTION
        assert description.name == name
        assert description.backend_class in CLASSES
        assert description.consistency
        assert description.durability

    def test_it_explains_every_field_of_the_config_and_no_other(self, name: str) -> None:
        module = document_driver(name)
        assert set(module.DESCRIPTION.config) == set(module.Config.__struct_fields__)
        assert not set(module.DESCRIPTION.secrets) & set(module.Config.__struct_fields__)

    def test_a_config_with_an_unknown_field_is_refused(self, name: str) -> None:
        module = document_driver(name)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"surely_unknown": 1}, module.Config)


@pytest.mark.parametrize("scheme", URL_SCHEMES)
def test_the_config_of_a_url_is_a_config_of_its_driver_without_the_password(scheme: str) -> None:
    module = document_driver(driver_of_url(URLS[scheme]))
    config, _ = module.config_from_url(URLS[scheme])
    assert "hunter2" not in str(config)
    assert msgspec.to_builtins(msgspec.convert(config, module.Config)).items() >= config.items()


def test_an_unknown_driver_or_scheme_is_invalid_and_lists_what_there_is() -> None:
    with pytest.raises(Invalid, match="sqlite, postgres"):
        document_driver("memory")
    with pytest.raises(Invalid, match="sqlite://"):
        driver_of_url("memory://")


async def test_opening_a_driver_touches_nothing(harness: DocumentHarness, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for _ in range(50):
        client = harness.open()
        await client.close()
    assert set(threading.enumerate()) <= before
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 (an empty directory)
