"""`file:name`: secrets as files below one mounted directory, as container platforms provide them.

Owns keeping every handle inside that directory: no `..`, no path elsewhere, no symbolic link that leads out.
Links within it are followed, because Kubernetes rotates a mounted secret by changing one.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

SECRET_BYTES_MAX: Final = 64 * 1024


def open_source(places: Mapping[str, str]) -> SecretSource:
    """`places["directory"]` is the mounted directory; without one every handle is refused."""
    place = places.get("directory")
    return MountedSecrets(None if place is None else Path(place))


class MountedSecrets:
    """`SecretSource` on a directory. One line end at the end of a file is no part of the secret."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = None if directory is None else directory.absolute()

    async def resolve(self, name: str) -> Secret:
        path = PurePosixPath(name)
        if str(path) != name or ".." in path.parts or name == ".":
            raise Invalid(
                "a handle of scheme file is a plain path below the mounted directory", field="secrets"
            )
        if self._directory is None:
            raise BackendRefused(f"the secret file:{name} cannot be read: no secrets directory is configured")
        inside = self._directory / path
        if not inside.is_relative_to(self._directory):
            raise Invalid("a handle of scheme file stays below the mounted directory", field="secrets")
        return await asyncio.to_thread(_read, self._directory, inside, name)


def _read(directory: Path, inside: Path, name: str) -> Secret:
    """Opens what the path really is."""
    try:
        real = inside.resolve(strict=True)
        if not real.is_relative_to(directory.resolve(strict=True)):
            raise BackendRefused(f"the secret file:{name} leads out of the mounted directory")
        # After resolving, a link here could only have been put in meanwhile; a FIFO must not block.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BackendRefused(f"the secret file:{name} is no file")
            content = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: Path.resolve on a loop of links.
        raise BackendRefused(f"the secret file:{name} cannot be read") from error
    if len(content) > SECRET_BYTES_MAX:
        raise BackendRefused(f"the secret file:{name} exceeds {SECRET_BYTES_MAX} bytes")
    text = _text(content)
    if not text:
        raise BackendRefused(f"the secret file:{name} is empty, or not UTF-8 text")
    return Secret(text)


def _text(content: bytes) -> str | None:
    """None where it is no text. The decoder's error holds the content, so it may not become a context."""
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return None
