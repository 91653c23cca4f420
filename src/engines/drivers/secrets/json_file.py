"""`json:a/b`: secrets in one local JSON file, each the string found by following member names.

Owns reading that file. It is read each time, so a rotated secret is seen without a restart.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

FILE_BYTES_MAX: Final = 1024 * 1024


def open_source(places: Mapping[str, str]) -> SecretSource:
    """`places["file"]` is the file's path; without one every handle is refused."""
    place = places.get("file")
    return JsonFileSecrets(None if place is None else Path(place))


class JsonFileSecrets:
    """`SecretSource` on one JSON object of strings and of objects like it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    async def resolve(self, name: str) -> Secret:
        members = name.split("/")
        if not all(members):
            raise Invalid("a handle of scheme json is json:member or json:member/member", field="secrets")
        if self._path is None:
            raise BackendRefused(f"the secret json:{name} cannot be read: no secrets file is configured")
        found = await asyncio.to_thread(_read, self._path, name)
        for member in members:
            found = found.get(member) if isinstance(found, dict) else None
        if not isinstance(found, str) or not found:
            raise BackendRefused(f"the secret json:{name} is no string in the secrets file")
        return Secret(found)


def _read(path: Path, name: str) -> Any:
    """The whole file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BackendRefused(f"the secret json:{name} cannot be read: the secrets file is no file")
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BackendRefused(
            f"the secret json:{name} cannot be read: the secrets file is not readable"
        ) from error
    if len(text) > FILE_BYTES_MAX:
        raise BackendRefused(
            f"the secret json:{name} cannot be read: the secrets file exceeds {FILE_BYTES_MAX} bytes"
        )
    contents = _json(text)
    if contents is None:
        raise BackendRefused(f"the secret json:{name} cannot be read: the secrets file is not JSON")
    return contents


def _json(text: bytes) -> Any:
    """None where it is none. A decoder's error may hold the text, so it may not become a context."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
