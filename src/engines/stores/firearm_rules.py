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

from collections.abc import Iterable, Mapping, Sequence
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
    """The definitions in force: t_system's, and a tenant's own.

    Classes by their id, bindings by each action as they write it, licences and grants by their class: what
    an action costs depends on its own classes, not on how much a tenant has defined.
    """

    system_classes: Mapping[str, FirearmClass]
    system_bindings: Mapping[str, Sequence[FirearmBinding]]
    classes: Mapping[str, FirearmClass]
    bindings: Mapping[str, Sequence[FirearmBinding]]
    licences: Mapping[str, Sequence[FirearmLicence]]
    grants: Mapping[str, Sequence[FirearmGrant]]

    def class_ids(self, action: str) -> Sequence[str]:
        """The classes of an action, by their ids; none where it is not dangerous."""
        return sorted(
            {
                binding.class_id
                for pattern in patterns_that_cover(action)
                for bindings in (self.system_bindings, self.bindings)
                for binding in bindings.get(pattern, ())
            }
        )

    def riskiest(self, class_ids: Sequence[str]) -> str | None:
        """Of several that are equally risky the first."""
        return max(class_ids, key=lambda class_id: _risk(self._defined(class_id)), default=None)

    def bound(self, context: RequestContext, class_id: str, at_s: float) -> Bound:
        """How the tenant and the caller stand to a class."""
        licences = [
            licence for licence in self.licences.get(class_id, ()) if _is_before(licence.expires_at, at_s)
        ]
        defined = self._defined(class_id)
        licensed = bool(licences and defined and self._is_offered(class_id, context.tenant_id))
        return Bound(
            class_id=class_id,
            needs=_needs(defined, licences),
            licensed=licensed,
            granted=any(_is_for(grant, context, at_s) for grant in self.grants.get(class_id, ())),
        )

    def _defined(self, class_id: str) -> Sequence[FirearmClass]:
        return [
            one for one in (self.system_classes.get(class_id), self.classes.get(class_id)) if one is not None
        ]

    def _is_offered(self, class_id: str, tenant_id: str) -> bool:
        system = self.system_classes.get(class_id)
        return (
            system is None
            or tenant_id == SYSTEM_TENANT
            or system.offered_to == "*"
            or tenant_id in system.offered_to
        )


def riskiest_first(bound: Iterable[Bound]) -> Sequence[Bound]:
    """Those that are equally risky as they come."""
    return sorted(bound, key=lambda one: -_RISKS.index(one.needs.risk_level))


def _risk(defined: Sequence[FirearmClass]) -> int:
    return max((_RISKS.index(one.risk_level) for one in defined), default=_RISKS.index("critical"))


def _needs(defined: Sequence[FirearmClass], licences: Sequence[FirearmLicence]) -> FirearmClass:
    """The strictest of them in each respect. Of two licences each may be the one that was meant."""
    if not defined:
        return FirearmClass("critical", human_approval=True, strategy_lock=True)
    said: Sequence[FirearmClass | FirearmLicence] = (*defined, *licences)
    return FirearmClass(
        _RISKS[_risk(defined)],
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


def patterns_that_cover(action: str) -> Iterable[str]:
    """What a binding may write to name an action: the action itself, or a beginning of it and `*`."""
    return (action, *(f"{action[:length]}*" for length in range(len(action) + 1)))


# --- compiling definitions ---


def class_of(record: Definition) -> FirearmClass:
    return shaped(record, FirearmClass)


def licence_of(record: Definition) -> FirearmLicence:
    return shaped(record, FirearmLicence)


def grant_of(record: Definition) -> FirearmGrant:
    return shaped(record, FirearmGrant)


def binding_of(record: Definition) -> FirearmBinding:
    return shaped(record, FirearmBinding)
