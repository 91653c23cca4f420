"""The table: made, waited for, and refused where it is somebody else's.

Owns its shape, its expiry and its backups. Every step looks before it changes anything, so two may run at
once, and one that finds everything in place needs no right to create. Leaves documents to `items.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from engines.drivers.documents.dynamodb.errors import code_of
from engines.drivers.documents.dynamodb.items import EXPIRY, KEY, PARTITION
from engines.errors import BackendRefused, EnginesError, Unavailable

# Pauses between looks double up to the maximum. In all they stay below the time that opening a backend has,
# so that what is missing is said; who provisions again goes on where this stopped.
LOOK_PAUSE_S: Final = 0.05
LOOK_PAUSE_MAX_S: Final = 2.0
PAUSES_S_MAX: Final = 8.0

KEY_SCHEMA: Final[Mapping[str, str]] = {PARTITION: "HASH", KEY: "RANGE"}
_CREATION: Final[Mapping[str, Any]] = {
    "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in KEY_SCHEMA.items()],
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in KEY_SCHEMA],
    "BillingMode": "PAY_PER_REQUEST",
}
_NOTHING: Final[Mapping[str, Any]] = {}


class Call(Protocol):
    """`Client.call`, for requests that store no document."""

    async def __call__(self, method: str, request: Mapping[str, Any], *, lost: type[EnginesError]) -> Any: ...


class Table:
    """The table of one backend's record."""

    def __init__(
        self, call: Call, *, name: str, region: str, pinned_to_region: bool, point_in_time_recovery: bool
    ) -> None:
        self._call = call
        self._name = name
        self._region = region
        self._pinned_to_region = pinned_to_region
        self._point_in_time_recovery = point_in_time_recovery

    async def provision(self) -> None:
        """Raises BackendRefused for a table that cannot hold documents, Unavailable for one that is not ready
        after `PAUSES_S_MAX`."""
        looks = _Looks()
        await self._create(looks)
        await self._expire(looks)
        if self._point_in_time_recovery:
            await self._protect(looks)

    async def _create(self, looks: _Looks) -> None:
        async for _ in looks.until("the table is not active yet: provision it again"):
            found = await self._ask("describe_table", unless=("ResourceNotFoundException",))
            if found is None:
                await self._ask("create_table", _CREATION, unless=("ResourceInUseException",))
                continue
            self._check(found["Table"])
            if found["Table"]["TableStatus"] in ("ACTIVE", "UPDATING"):
                return

    def _check(self, table: Mapping[str, Any]) -> None:
        keys = _pairs(table["KeySchema"], "KeyType")
        types = _pairs(table["AttributeDefinitions"], "AttributeType")
        if keys != KEY_SCHEMA or any(types[name] != "S" for name in keys):
            raise BackendRefused(
                f"the table has other keys than {PARTITION} and {KEY}, both text: name another table"
            )
        if table["TableStatus"] == "DELETING":
            raise BackendRefused("the table is being deleted: wait, then provision again")
        if table.get("MultiRegionConsistency") == "STRONG":
            raise BackendRefused("a strongly consistent global table has no transactions: name another table")
        elsewhere = {replica["RegionName"] for replica in table.get("Replicas", ())} - {self._region}
        if elsewhere and not self._pinned_to_region:
            raise BackendRefused(
                "the table is replicated to other regions, whose writes would overwrite ours unseen: name"
                " another table, or set pinned_to_region where every writer uses this region"
            )

    async def _expire(self, looks: _Looks) -> None:
        """Of two that switch it on at once one may be refused, who then finds it on."""
        async for _ in looks.until("the table's time to live cannot be set yet: provision it again"):
            found = (await self._ask("describe_time_to_live"))["TimeToLiveDescription"]
            status = found["TimeToLiveStatus"]
            if status in ("ENABLED", "ENABLING") and found.get("AttributeName") == EXPIRY:
                return
            if status != "DISABLED":
                raise BackendRefused(
                    f"the table's time to live goes by another attribute than {EXPIRY}, or is being switched"
                    " off: switch it off, then provision again"
                )
            wanted = {"Enabled": True, "AttributeName": EXPIRY}
            await self._ask(
                "update_time_to_live",
                {"TimeToLiveSpecification": wanted},
                unless=("ValidationException", "ResourceInUseException"),
            )

    async def _protect(self, looks: _Looks) -> None:
        """Of a table that was made a moment ago there are no backups yet."""
        async for _ in looks.until(
            "the table's point-in-time recovery cannot be set yet: provision it again"
        ):
            found = await self._ask("describe_continuous_backups", unless=("UnknownOperationException",))
            if found is None:
                raise BackendRefused(
                    "the endpoint has no point-in-time recovery: set point_in_time_recovery to false"
                )
            recovery = found["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
            if recovery.get("PointInTimeRecoveryStatus") == "ENABLED":
                return
            await self._ask(
                "update_continuous_backups",
                {"PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}},
                unless=("ContinuousBackupsUnavailableException",),
            )

    async def _ask(
        self, method: str, request: Mapping[str, Any] = _NOTHING, *, unless: Sequence[str] = ()
    ) -> Any:
        """The answer, or None where the service refused with one of the codes in `unless`."""
        try:
            return await self._call(method, {"TableName": self._name, **request}, lost=Unavailable)
        except EnginesError as error:
            if code_of(error) in unless:
                return None
            raise


class _Looks:
    """The looks of all steps, and the pauses that are left for them."""

    def __init__(self) -> None:
        self._left_s = PAUSES_S_MAX

    async def until(self, late: str) -> AsyncIterator[None]:
        """One turn for each look; raises Unavailable with `late` once no pause is left."""
        pause_s = LOOK_PAUSE_S
        while True:
            yield
            if self._left_s <= 0:
                raise Unavailable(late)
            self._left_s -= pause_s
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_PAUSE_MAX_S, 2 * pause_s)


def _pairs(described: Iterable[Mapping[str, str]], value: str) -> dict[str, str]:
    return {entry["AttributeName"]: entry[value] for entry in described}
