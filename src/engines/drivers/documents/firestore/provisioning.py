"""What `provision` does in a real database: its mode, its index exemptions, its TTL policy.

Owns three calls of the Firestore Admin API. Exemptions and the policy become effective minutes later; nothing
waits for them, because documents are written and read alike before. Leaves the channel to `connection.py`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.cloud.firestore_admin_v1.types import database as _database
from google.cloud.firestore_admin_v1.types import field as _field
from google.cloud.firestore_admin_v1.types import firestore_admin as _admin
from google.longrunning.operations_pb2 import Operation  # type: ignore[import-untyped]

from engines.drivers.documents.firestore.connection import ConditionRefusedError, Connection
from engines.drivers.documents.firestore.messages import Layout
from engines.errors import BackendRefused, Unavailable

_Field: Final[Any] = _field.Field.pb()
_Database: Final[Any] = _database.Database.pb()
_GetDatabase: Final[Any] = _admin.GetDatabaseRequest.pb()
_GetField: Final[Any] = _admin.GetFieldRequest.pb()
_UpdateField: Final[Any] = _admin.UpdateFieldRequest.pb()
_ADMIN: Final = "/google.firestore.admin.v1.FirestoreAdmin/"
_NATIVE: Final = int(_database.Database.DatabaseType.FIRESTORE_NATIVE)

# Not `key`, by which a scan downwards is ordered.
EXEMPT: Final = ("body", "version", "exp")
TTL: Final = "exp"
PAUSES_S: Final = (0.2, 1.0)


async def provision_fields(connection: Connection, layout: Layout) -> None:
    """Raises BackendRefused for a database in another mode, or without the rights to do this."""
    request = _GetDatabase(name=layout.database)
    found = await connection.call(f"{_ADMIN}GetDatabase", request, _Database, route="name", lost=Unavailable)
    if found.type_ != _NATIVE:
        raise BackendRefused(
            "Firestore: the database is in Datastore mode: create another with"
            " `gcloud firestore databases create --type=firestore-native`"
        )
    for name in EXEMPT:
        await _repeated(functools.partial(_provision_field, connection, layout, name))


async def _repeated(step: Callable[[], Awaitable[None]]) -> None:
    """The service undoes one of several changes of a database's fields that meet: those are made again."""
    for pause_s in PAUSES_S:
        try:
            await step()
        except Unavailable:
            await asyncio.sleep(pause_s)
        else:
            return
    await step()


async def _provision_field(connection: Connection, layout: Layout, name: str) -> None:
    path = f"{layout.database}/collectionGroups/{layout.collection}/fields/{name}"
    found = await connection.call(
        f"{_ADMIN}GetField", _GetField(name=path), _Field, route="name", lost=Unavailable
    )
    request = _UpdateField()
    request.field.name = path
    if found.index_config.uses_ancestor_config or found.index_config.indexes:
        request.field.index_config.SetInParent()
        request.update_mask.paths.append("index_config")
    if name == TTL and not found.HasField("ttl_config"):
        request.field.ttl_config.SetInParent()
        request.update_mask.paths.append("ttl_config")
    if not request.update_mask.paths:
        return
    try:
        await connection.call(
            f"{_ADMIN}UpdateField", request, Operation, route="field.name", lost=Unavailable, conditioned=True
        )
    except ConditionRefusedError:
        # Another process is changing the field at this moment, to the same.
        return
