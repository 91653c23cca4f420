"""The drivers that exist: one line each.

Owns the names under which backend records refer to drivers, and loading a driver's module on first use,
so that an SDK is imported only where a backend needs it. Leaves opening backends to `routing/backends.py`.

A document driver's module has `DESCRIPTION`, `Config` (a Struct) and `open_driver(config, secrets, clock)`.
A source of secrets has `open_source(places)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

import msgspec

from engines.clock import Clock
from engines.errors import BackendRefused, Invalid
from engines.ports.documents import DocumentDriver, DriverDescription
from engines.ports.secrets import Secret, SecretSource

DOCUMENT_DRIVERS: Final[Mapping[str, str]] = {
    "sqlite": "engines.drivers.documents.sqlite",
    "postgres": "engines.drivers.documents.postgres",
    "dynamodb": "engines.drivers.documents.dynamodb",
    "firestore": "engines.drivers.documents.firestore",
    "cosmos": "engines.drivers.documents.cosmos",
}
# The schemes of secret handles, and the source that reads each.
SECRET_SOURCES: Final[Mapping[str, str]] = {
    "env": "engines.drivers.secrets.environment",
    "json": "engines.drivers.secrets.json_file",
    "file": "engines.drivers.secrets.mount",
    "aws": "engines.drivers.secrets.aws",
    "google": "engines.drivers.secrets.google",
    "azure": "engines.drivers.secrets.azure",
}
# The schemes of a control plane's URL, and the driver that reads each.
URL_SCHEMES: Final[Mapping[str, str]] = {
    "sqlite": "sqlite",
    "postgresql": "postgres",
    "dynamodb": "dynamodb",
    "firestore": "firestore",
    "cosmos": "cosmos",
}


class DocumentDriverModule(Protocol):
    """What a document driver's module offers."""

    DESCRIPTION: DriverDescription
    Config: type[msgspec.Struct]

    def open_driver(self, config: Any, secrets: Mapping[str, Secret], clock: Clock) -> DocumentDriver:
        """Called in a thread, as it may import an SDK: it connects to nothing and needs no event loop."""
        ...

    def config_from_url(self, url: str) -> tuple[dict[str, Any], str | None]:
        """The config that a URL means, and the password in it. Raises Invalid."""
        ...


def document_driver(name: str) -> DocumentDriverModule:
    """Raises Invalid, listing the names that exist."""
    module = DOCUMENT_DRIVERS.get(name)
    if module is None:
        raise Invalid(
            f"no document driver has this name; there are {', '.join(DOCUMENT_DRIVERS)}", field="driver"
        )
    try:
        return cast(DocumentDriverModule, importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise BackendRefused(f"the driver {name} is not installed: pip install 'engines[{name}]'") from error


def driver_of_url(url: str) -> str:
    """The driver that reads a control plane's URL. Raises Invalid, listing the schemes that exist."""
    name = URL_SCHEMES.get(url.partition("://")[0])
    if name is None:
        schemes = ", ".join(f"{scheme}://" for scheme in URL_SCHEMES)
        raise Invalid(f"a control plane's URL begins with one of {schemes}", field="control_plane")
    return name


def url_secrets(module: DocumentDriverModule, password: str | None) -> dict[str, Secret]:
    """The password of a control plane's URL, under the name of the driver's first secret."""
    if password is None:
        return {}
    return {next(iter(module.DESCRIPTION.secrets)): Secret(password)}


class SecretSourceModule(Protocol):
    """What the module of a source of secrets offers."""

    def open_source(self, places: Mapping[str, str]) -> SecretSource: ...


def secret_sources(**places: str) -> dict[str, SecretSource]:
    """Every source by its scheme. `places` are the bootstrap's: a JSON `file`, a mounted `directory`.

    `aws_endpoint`, `google_endpoint` and `azure_endpoint` stand for a service's own address.
    """
    return {
        scheme: cast(SecretSourceModule, importlib.import_module(module)).open_source(places)
        for scheme, module in SECRET_SOURCES.items()
    }
