"""`env:NAME`: secrets in the process's environment.

Owns the prefix that such variables must have, so that a handle cannot read any other variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

PREFIX: Final = "ENGINES_SECRET_"
_NAME: Final = re.compile(PREFIX + r"[A-Z0-9_]+")


def open_source(_: Mapping[str, str]) -> SecretSource:
    return EnvironmentSecrets(os.environ)


class EnvironmentSecrets:
    """`SecretSource` on a mapping of names to values."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def resolve(self, name: str) -> Secret:
        if not _NAME.fullmatch(name):
            raise Invalid(
                f"a handle of scheme env names a variable that begins with {PREFIX}", field="secrets"
            )
        value = self._environment.get(name)
        if not value:
            raise BackendRefused(f"the secret env:{name} is not set")
        return Secret(value)
