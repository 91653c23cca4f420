"""Kill switches and gate configuration: which actions are off, and which gates guard the others.

Owns who may set them and what they may name. Both are control-plane data: every process follows them, adopts
a change within a second and refuses to judge by a view that is older than three, so that judging an action
reads no backend. What t_system holds for a tenant that tenant cannot let go of. Leaves judging to `safety/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from engines.control.records import GateConfig, GateRule, KillSwitch, Switch
from engines.control.service import Service, actor, require_in_tenant, require_system_admin
from engines.control.store import Stored
from engines.control.tables import GATE_CONFIGS, KILL_SWITCHES, surface_key
from engines.core.idempotency import Request
from engines.core.records import ANYTHING, Condition
from engines.errors import Invalid, NotFound
from engines.scope import SYSTEM_TENANT, RequestContext, normalise_surface

READ: Final = "gates.read"
WRITE: Final = "gates.write"


class KillSwitches:
    """What is switched off: by a tenant for itself, by t_system for one tenant or, naming none, for all."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def put(
        self,
        context: RequestContext,
        *,
        engaged: bool = False,
        reason: str | None = None,
        switches: Sequence[Switch] = (),
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[KillSwitch]:
        """Replace the whole switch. This process adopts it before it answers, every other within a second.

        Raises Forbidden, MissingRoute (no spine could be told), Invalid (no such surface),
        PreconditionFailed.
        """
        _require_write(context)
        await self._service.admit(context)
        holder_id, tenant_id = _ids(context)

        async def build(_: KillSwitch | None) -> KillSwitch:
            return KillSwitch(
                holder_id=holder_id,
                tenant_id=tenant_id,
                engaged=engaged,
                reason=reason,
                switches=await self._resolved(switches),
            )

        # What stops everything does not wait for the audit of what went before.
        return await self._store.put(
            KILL_SWITCHES,
            [holder_id, tenant_id],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
            mends=True,
        )

    async def get(self, context: RequestContext) -> Stored[KillSwitch]:
        """What the caller holds: the tenant for itself, t_system for others. Raises NotFound."""
        require_in_tenant(context, READ)
        return await self._store.get(KILL_SWITCHES, *_ids(context))

    async def _resolved(self, switches: Sequence[Switch]) -> tuple[Switch, ...]:
        """With each surface under the id that all its spellings share. Raises Invalid."""
        resolved: list[Switch] = []
        for place, switch in enumerate(switches):
            surface_id = switch.surface_id
            if surface_id is not None:
                field = f"switches[{place}].surface_id"
                key = surface_key(normalise_surface(surface_id, field))
                surface_id = await self._store.resolve_index(key)
                if surface_id is None:
                    raise Invalid("there is no such surface", field=field)
            elif switch.action is None:
                raise Invalid("a switch names a surface or an action", field=f"switches[{place}]")
            resolved.append(msgspec.structs.replace(switch, surface_id=surface_id))
        return tuple(resolved)


class GateConfigs:
    """Which gates guard what on a surface: a tenant's own, and t_system's for those that have none."""

    def __init__(self, service: Service, mounted: Iterable[str]) -> None:
        """`mounted`: the gates that this process has; a rule may name no other."""
        self._service = service
        self._store = service.store
        self._mounted = frozenset(mounted)

    async def put(
        self,
        context: RequestContext,
        config: GateConfig,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[GateConfig]:
        """Replace a surface's configuration. The tenant is the caller's, whatever `config` says.

        Raises Forbidden, MissingRoute, NotFound (no such surface), Invalid (a gate that is not mounted, a
        pattern or gate that stands twice), PreconditionFailed.
        """
        _require_write(context)
        await self._service.admit(context)
        self._check(config)
        tenant_id = context.target_tenant_id
        surface_id = await self._surface(config.surface_id)

        async def build(_: GateConfig | None) -> GateConfig:
            return msgspec.structs.replace(config, tenant_id=tenant_id, surface_id=surface_id)

        return await self._store.put(
            GATE_CONFIGS,
            [tenant_id, surface_id],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
        )

    async def get(self, context: RequestContext, surface_id: str) -> Stored[GateConfig]:
        """The tenant's own. Raises NotFound, also where t_system's holds."""
        require_in_tenant(context, READ)
        return await self._store.get(GATE_CONFIGS, context.target_tenant_id, await self._surface(surface_id))

    async def _surface(self, spelling: str) -> str:
        found = await self._store.resolve_index(surface_key(normalise_surface(spelling)))
        if found is None:
            raise NotFound("there is no such surface")
        return str(found)

    def _check(self, config: GateConfig) -> None:
        patterns: set[str] = set()
        for place, rule in enumerate(config.rules):
            if rule.action in patterns:
                raise Invalid("an action is named by two rules", field=f"rules[{place}].action")
            patterns.add(rule.action)
            self._check_gates(rule, f"rules[{place}].gates")

    def _check_gates(self, rule: GateRule, field: str) -> None:
        if len(set(rule.gates)) < len(rule.gates):
            raise Invalid("a gate stands twice in a rule", field=field)
        for place, gate in enumerate(rule.gates):
            if gate not in self._mounted:
                raise Invalid("this server has not mounted this gate's store", field=f"{field}[{place}]")


def _ids(context: RequestContext) -> tuple[str, str]:
    """Who holds the switch, and for whom."""
    return context.tenant_id, context.target_tenant_id


def _require_write(context: RequestContext) -> None:
    """In t_system nobody but its admins: what they hold is held for others."""
    if context.tenant_id == SYSTEM_TENANT:
        require_system_admin(context)
    require_in_tenant(context, WRITE)
