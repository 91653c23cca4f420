"""What calls of the gate chain take and give: one Struct a record, as the HTTP contract writes it.

Owns names and types, like `client/results.py` for a tenant's data.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from engines.client.control_results import Recorded

Verdict = Literal["pass", "block"]


class Cost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an action would cost. `amount`: a decimal number as text, so that no digit is lost."""

    amount: str
    currency: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None


class JudgedGate(msgspec.Struct, frozen=True, kw_only=True):
    """One gate's verdict, and by what it was reached."""

    gate: str
    result: Verdict
    reason_code: str = ""
    gate_status: str = "ok"
    details: dict[str, Any] = {}
    inputs: dict[str, Any] = {}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an action may happen, and the event on the spine that records it.

    `gate`: who refuses, None where nobody does. `gates`: each verdict, where the decision was to be
    explained.
    """

    decision: Verdict
    gate: str | None = None
    reason_code: str = ""
    gate_status: str = "ok"
    action: str = ""
    subject: str = ""
    dry_run: bool = False
    details: dict[str, Any] = {}
    gates: tuple[JudgedGate, ...] | None = None
    event_id: str = ""
    position: int = 0
    cursor: str = ""

    @property
    def passed(self) -> bool:
        """Whether the action may happen."""
        return self.decision == "pass"


class Switch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part that is switched off: a surface, the actions that a pattern names, or these on that surface."""

    surface_id: str | None = None
    action: str | None = None
    reason: str | None = None


class KillSwitch(Recorded, frozen=True, kw_only=True):
    """What is switched off for a tenant, by whoever holds it: the tenant itself, or t_system."""

    tenant_id: str
    holder_id: str = ""
    engaged: bool = False
    reason: str | None = None
    switches: tuple[Switch, ...] = ()


class GateRule(msgspec.Struct, frozen=True, kw_only=True):
    """Which gates guard the actions that a pattern names, in order."""

    action: str
    gates: tuple[str, ...]


class GateConfig(Recorded, frozen=True, kw_only=True):
    """Which gates guard what on a surface."""

    surface_id: str
    tenant_id: str = ""
    rules: tuple[GateRule, ...] = ()
    otherwise: Literal["base", "block"] = "base"
