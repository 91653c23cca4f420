"""Moves in the control plane: which are under way, and which generations they have used.

Owns reading them out of the index entries that `control/tables.py` makes. Leaves starting, steering and
moving to `routing/`.
"""

from __future__ import annotations

from engines.control.records import Move
from engines.control.store import ControlStore
from engines.control.tables import MOVES
from engines.core.keys import join
from engines.ports.documents import GET_KEYS_MAX


async def moves_under_way(store: ControlStore) -> list[Move]:
    """Every move that has not ended, of all tenants."""
    moves: list[Move] = []
    after: str | None = None
    while True:
        claims, after = await store.page_of_index("i", "moving", after=after, limit=GET_KEYS_MAX)
        found = await store.read_many(MOVES, [(move_id,) for _, move_id in claims]) if claims else []
        moves += [stored.record for stored in found if stored is not None and not stored.record.ended]
        if after is None:
            return moves


async def moves_of(store: ControlStore, tenant_id: str) -> list[Move]:
    """Every move that the tenant ever had, by kind and number."""
    moves: list[Move] = []
    after: str | None = None
    while True:
        named, after = await store.page_of_index("i", "moves", tenant_id, after=after, limit=GET_KEYS_MAX)
        found = await store.read_many(MOVES, [(move_id,) for _, move_id in named]) if named else []
        moves += [stored.record for stored in found if stored is not None]
        if after is None:
            return moves


async def settled_generation(store: ControlStore, tenant_id: str, kind: str) -> int:
    """That of the tenant's last move of the kind that arrived; 0 where none did.

    One that was cancelled is never used: whoever empties it may be late.
    """
    prefix = ("i", "moves", tenant_id, kind)
    for number in await store.scan_index(*prefix, descending=True):
        move_id = await store.resolve_index(join(*prefix, number))
        stored = None if move_id is None else await store.read(MOVES, move_id)
        if stored is not None and stored.record.phase in ("settle", "done", "retire", "retired"):
            return int(number)
    return 0


async def newest_generation(store: ControlStore, tenant_id: str, kind: str) -> int:
    """That of the tenant's last move of the kind, whatever came of it; 0 where there was none."""
    numbers = await store.scan_index("i", "moves", tenant_id, kind, limit=1, descending=True)
    return int(numbers[0]) if numbers else 0
