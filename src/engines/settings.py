"""Bootstrap settings: the little that must be known before the control plane can be read.

Owns the environment variables that Engines reads and their defaults. No variable selects a backend for
data: `ENGINES_CONTROL_PLANE` names the control plane and nothing else. A misspelt name fails at start.
Secrets named by `env:` handles are read by `drivers/secrets/environment.py`, under `ENGINES_SECRET_`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from engines.errors import Invalid

PREFIX: Final = "ENGINES_"
# Read elsewhere: secrets by their driver, test switches by the shipped kits.
FOREIGN_PREFIXES: Final = ("ENGINES_SECRET_", "ENGINES_TEST_")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Each field is the variable `ENGINES_<FIELD>`; a command-line option of the same name overrides it."""

    control_plane: str | None = None
    secrets_file: str | None = None
    secrets_dir: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    url: str | None = None
    token: str | None = None


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The process's settings. Raises Invalid for an unknown name or a value of the wrong type."""
    source = os.environ if environment is None else environment
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in source.items()
        if name.startswith(PREFIX) and not name.startswith(FOREIGN_PREFIXES)
    }
    unknown = sorted(given.keys() - set(Settings.__struct_fields__))
    if unknown:
        names = ", ".join(PREFIX + field.upper() for field in Settings.__struct_fields__)
        raise Invalid(f"{PREFIX}{unknown[0].upper()} is no setting; there are {names}", field=unknown[0])
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"a setting has the wrong type: {error}") from error
