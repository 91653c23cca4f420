"""Which attribution contract is in force for a platform.

Owns where it is looked for (among the definitions of the bound project, then among those of the tenant) and
how long an answer is kept: a second, so that taking events in does not read it each time. Leaves what a
contract says to `stores/attribution.py`, and its versions to `stores/definitions.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from engines.clock import Clock
from engines.errors import Corrupt
from engines.scope import RequestContext
from engines.stores.attribution import AttributionContract, ContractInForce, ContractRef
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definitions import Definitions

AGE_MAX_S: Final = 1.0
REMEMBERED_MAX: Final = 1_000
SCHEMA: Final = SCHEMA_NAMED["attribution"]

_Key = tuple[str | None, ...]


class ContractDefinitions:
    """`attribution.Contracts`, from definitions. An answer is at most `AGE_MAX_S` old."""

    def __init__(self, definitions: Definitions, clock: Clock) -> None:
        self._definitions = definitions
        self._clock = clock
        self._remembered: OrderedDict[_Key, tuple[float, ContractInForce | None]] = OrderedDict()

    async def contract_in_force(self, context: RequestContext, platform: str) -> ContractInForce | None:
        """Two reads, or four where the bound project has none of its own; none while it is remembered."""
        where: _Key = (context.tenant_id, context.mode, context.env, context.surface_id, context.app_id)
        key: _Key = (*where, context.project_id, platform)
        asked_at_s = self._clock.monotonic()
        remembered = self._remembered.get(key)
        if remembered is not None and asked_at_s - remembered[0] < AGE_MAX_S:
            return remembered[1]
        found = await self._find(context, platform)
        if found is None and context.project_id is not None:
            found = await self._find(msgspec.structs.replace(context, project_id=None), platform)
        self._remembered[key] = asked_at_s, found
        self._remembered.move_to_end(key)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return found

    async def _find(self, context: RequestContext, platform: str) -> ContractInForce | None:
        definition = await self._definitions.of_slug(context, SCHEMA, platform)
        if definition is None:
            return None
        try:
            terms = msgspec.convert(definition.json_blob, AttributionContract)
        except msgspec.ValidationError as error:
            raise Corrupt("a stored attribution contract is none") from error
        return ContractInForce(ContractRef(definition.id, definition.version), terms)
