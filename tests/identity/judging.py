"""How a test judges what became of a credential.

Owns the verdicts, and asking for a context by header names. A refusal must be the same Unauthenticated each
time, and neither it nor the log may hold anything of the token.
"""

from __future__ import annotations

import pytest
import structlog.testing

from engines.errors import Unauthenticated
from engines.scope import RequestContext
from tests.identity.world import World


async def refused(world: World, text: str) -> None:
    """In its first sight and again: no refusal may be remembered as something better."""
    for _ in range(2):
        with structlog.testing.capture_logs() as logs, pytest.raises(Unauthenticated) as caught:
            await world.contexts.context(text)
        assert caught.value.detail == "a valid bearer token or API key is required"
        assert not caught.value.field
        # Neither the token nor what it decodes to, which is where a decoder's error would show it.
        hidden = [part for part in text.split(".") if len(part) > 20] + ["sub-ada"]
        assert not any(part in story_of(caught.value) + str(logs) for part in hidden)


def story_of(error: BaseException | None) -> str:
    """All that an error and what led to it hold."""
    told = ""
    while error is not None:
        told += f"{error!r} {vars(error)} {getattr(error, 'doc', '')} {getattr(error, 'object', '')}"
        error = error.__cause__ or error.__context__
    return told


async def accepted(world: World, text: str) -> None:
    """At first sight and again, from memory."""
    for _ in range(2):
        assert (await world.contexts.context(text)).user_id == "ada"


async def context_of(world: World, credential: str | None = None, **headers: str) -> RequestContext:
    """`x_tenant_id="t_one"` is the header X-Tenant-Id."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.contexts.context(credential or world.token(), named)
