"""Secrets: from a handle to its present value, whatever keeps it.

Owns the grammar of handles, choosing a source by its scheme, and the promise that an error names the handle
and never a value. It stands in core because it is the portable half of a port: it knows sources by their
protocol alone. Leaves each scheme to its driver under `drivers/secrets/`, and which there are to
`drivers/registry.py`.

Nothing is cached here: a secret is resolved when a backend is opened or an issuer's key is looked at again,
and a rotated one must be seen then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from engines.errors import Invalid
from engines.ports.secrets import Secret, SecretSource

HANDLE_CHARACTERS_MAX: Final = 512

# Printable ASCII without the space: a handle stands in records, logs and error messages.
_HANDLE: Final = re.compile(r"([a-z][a-z0-9]{0,15}):([\x21-\x7e]+)")


class Secrets:
    """`SecretResolver` over sources by scheme."""

    def __init__(self, sources: Mapping[str, SecretSource]) -> None:
        self._sources = dict(sources)

    async def resolve(self, handle: str) -> Secret:
        """Raises Invalid for a malformed handle or unknown scheme, BackendRefused where it cannot be read."""
        scheme, name = parse_handle(handle)
        source = self._sources.get(scheme)
        if source is None:
            raise Invalid(
                f"the scheme of a secret handle is one of {', '.join(self._sources)}", field="secrets"
            )
        return await source.resolve(name)


def parse_handle(handle: str) -> tuple[str, str]:
    """(scheme, name). Raises Invalid, without repeating what may be a value put in a handle's place."""
    match = _HANDLE.fullmatch(handle) if len(handle) <= HANDLE_CHARACTERS_MAX else None
    if match is None:
        raise Invalid(
            f"a secret handle is scheme:name, at most {HANDLE_CHARACTERS_MAX} characters", field="secrets"
        )
    return match[1], match[2]
