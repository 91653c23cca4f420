"""The secret port: handles in, values out.

Owns the shape of a handle and the `SecretSource` protocol. A handle is `scheme:name`, such as
`env:ENGINES_SECRET_DB`, `json:db/password` or `file:/run/secrets/db`; records and routes hold handles, never
values. Leaves each scheme to a driver under `drivers/secrets/` and choosing among them to `core/secrets.py`.
"""

from __future__ import annotations

from typing import Protocol


class Secret:
    """A value that does not show in logs, reprs or error messages. `reveal()` hands it over."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"


class SecretSource(Protocol):
    """One place where secrets are kept."""

    async def resolve(self, name: str) -> Secret:
        """The secret's present value. Raises Invalid for a name that the scheme cannot have, BackendRefused
        where it cannot be read. Both name the handle and never a value."""
        ...


class SecretResolver(Protocol):
    """All sources behind one call; the only way to a secret anywhere in Engines."""

    async def resolve(self, handle: str) -> Secret:
        """Raises Invalid for a malformed handle or unknown scheme, BackendRefused where it cannot be read."""
        ...
