"""What it takes to do something dangerous: classes, bindings, licences and grants as one set of rules.

Owns what follows from the definitions of a tenant and of t_system together, and nothing else: no store, no
I/O. Leaves reading them, uses and approvals to `stores/firearms.py`.

Who decides what, so that nobody widens what was narrowed:

- t_system's classes and bindings hold for every tenant. A tenant adds classes and bindings of its own, which
  can only add: an action is a use of every class to which anybody binds it, and must satisfy them all.
- Where both define a class, the stricter of the two holds in each respect. A licence's overrides are held to
  the same rule: they may ask for more than the class, never for less.
- A tenant writes its own licences, and of t_system's classes only those count that t_system offers it
  (`offered_to` of the class: names of tenants, or `*`; nobody unless it says so). What is offered is
  withdrawn by t_system alone, whatever licences the tenant holds. For a class of the tenant's own its
  licence is enough.
- A binding to a class that nobody defines, an action bound to several classes, a licence that has lapsed:
  what is in doubt is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import msgspec

from engines.scope import SYSTEM_TENANT, RequestContext
from engines.stores.definition_cache import shaped
from engines.stores.definition_records import Definition
from engines.stores.definition_shapes import (
    FirearmBinding,
    FirearmClass,
    FirearmGrant,
    FirearmLicence,
    RiskLevel,
)
from engines.stores.event_records import instant_ms
from engines.stores.scoped import AGENT_ROLE
from engines.stores.strategy_locks import covers

Approval = Literal["none", "pending", "granted", "refused"]
_RISKS: Final[Sequence[RiskLevel]] = get_args(RiskLevel)


class FirearmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dangerous action at one instant.

    `licensed`: the tenant's licence of the class is in force, its overrides applied to the class's defaults.
    `granted`: the caller has a grant of the class that is neither expired nor revoked. `cooldown_until_s`:
    epoch seconds, None where the class has no cooldown or was not used within it. Of an action that is
    bound to several classes: what they ask for together, under the riskiest one's name.
    """

    class_id: str
    risk_level: str
    licensed: bool
    granted: bool
    needs_approval: bool = False
    approval: Approval = "none"
    approval_id: str | None = None
    cooldown_until_s: float | None = None
    needs_strategy_lock: bool = False
    has_strategy_lock: bool = False

    def allow(self, at_s: float) -> bool:
        """Whether nothing stands in the way of one use."""
        return (
            self.licensed
            and self.granted
            and (self.cooldown_until_s is None or at_s >= self.cooldown_until_s)
            and (not self.needs_strategy_lock or self.has_strategy_lock)
            and (not self.needs_approval or self.approval == "granted")
        )


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One class that an action is a use of, as the tenant and the caller stand to it."""

    class_id: str
    needs: FirearmClass
    licensed: bool
    granted: bool


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The definitions in force: t_system's, and a tenant's own, each by its id."""

    system_classes: Mapping[str, FirearmClass]
    system_bindings: Mapping[str, FirearmBinding]
    classes: Mapping[str, FirearmClass]
    bindings: Mapping[str, FirearmBinding]
    licences: Mapping[str, FirearmLicence]
    grants: Mapping[str, FirearmGrant]

    def bound(self, context: RequestContext, action: str, at_s: float) -> Sequence[Bound]:
        """The classes of an action, the riskiest first; none where it is not dangerous."""
        class_ids = {
            binding.class_id
            for binding in (*self.system_bindings.values(), *self.bindings.values())
            if any(covers(pattern, action) for pattern in binding.actions)
        }
        found = [self._bound(context, class_id, at_s) for class_id in sorted(class_ids)]
        return sorted(found, key=lambda bound: -_RISKS.index(bound.needs.risk_level))

    def _bound(self, context: RequestContext, class_id: str, at_s: float) -> Bound:
        licences = [
            licence
            for licence in self.licences.values()
            if licence.class_id == class_id and _is_before(licence.expires_at, at_s)
        ]
        defined = [
            one for one in (self.system_classes.get(class_id), self.classes.get(class_id)) if one is not None
        ]
        licensed = bool(licences and defined and self._is_offered(class_id, context.tenant_id))
        return Bound(
            class_id=class_id,
            needs=_needs(defined, licences),
            licensed=licensed,
            granted=any(
                grant.class_id == class_id and _is_for(grant, context, at_s) for grant in self.grants.values()
            ),
        )

    def _is_offered(self, class_id: str, tenant_id: str) -> bool:
        system = self.system_classes.get(class_id)
        return (
            system is None
            or tenant_id == SYSTEM_TENANT
            or system.offered_to == "*"
            or tenant_id in system.offered_to
        )


def _needs(defined: Sequence[FirearmClass], licences: Sequence[FirearmLicence]) -> FirearmClass:
    """The strictest of them in each respect. Of two licences each may be the one that was meant."""
    if not defined:
        return FirearmClass("critical", human_approval=True, strategy_lock=True)
    said: Sequence[FirearmClass | FirearmLicence] = (*defined, *licences)
    return FirearmClass(
        max((one.risk_level for one in defined), key=_RISKS.index),
        human_approval=any(one.human_approval for one in said),
        cooldown_seconds=max(one.cooldown_seconds or 0 for one in said),
        strategy_lock=any(one.strategy_lock for one in said),
    )


def _is_for(grant: FirearmGrant, context: RequestContext, at_s: float) -> bool:
    """An agent's grant is for whoever acts as that agent; a user's is for the user in person alone."""
    holder = grant.agent_id if AGENT_ROLE in context.roles else grant.user_id
    return holder == context.user_id and not grant.revoked and _is_before(grant.expires_at, at_s)


def _is_before(expires_at: str | None, at_s: float) -> bool:
    return expires_at is None or at_s * 1_000 < instant_ms(expires_at, "expires_at")


# --- compiling definitions ---


def class_of(record: Definition) -> FirearmClass:
    return shaped(record, FirearmClass)


def licence_of(record: Definition) -> FirearmLicence:
    return shaped(record, FirearmLicence)


def grant_of(record: Definition) -> FirearmGrant:
    return shaped(record, FirearmGrant)


def binding_of(record: Definition) -> FirearmBinding:
    return shaped(record, FirearmBinding)
