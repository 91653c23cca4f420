"""Engines: durable, multi-tenant state for agent applications.

    async with engines.open("sqlite:///var/lib/engines/control.db") as opened:
        context = await opened.contexts.context(token, {})
        note = await opened.notes.create(context, NoteInput(content="remembered"))

In process and over HTTP the stores are the same. The HTTP client is `engines.client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.wiring import Engines
    from engines.wiring import open_engines as open  # noqa: A004 (as in `engines.open`)

__all__ = ["Engines", "open"]


def __getattr__(name: str) -> object:
    """The composition root is imported when it is first asked for, so that a client stays light."""
    if name == "open":
        from engines.wiring import open_engines

        return open_engines
    if name == "Engines":
        from engines.wiring import Engines

        return Engines
    raise AttributeError(f"module 'engines' has no attribute {name!r}")
