"""The gate chain: may an action happen, what is switched off, which gates guard what.

Owns the paths, parameters and types of these calls. An error that carries `decision` "block" says that the
decision could not be recorded: the action must not happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from engines.client.calls import Calls, Condition
from engines.client.gate_results import Cost, Decision, GateConfig, GateRule, KillSwitch, Switch
from engines.client.results import Causality


class Gates:
    """Whether an action may happen."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def evaluate(
        self,
        action: str,
        *,
        subject: str | None = None,
        details: Mapping[str, Any] | None = None,
        cost: Cost | None = None,
        dry_run: bool = False,
        explain: bool = False,
        parent_event_id: str | None = None,
        causality: Causality | None = None,
        idempotency_key: str | None = None,
    ) -> Decision:
        """Have it decided and recorded. One key stands for one attempt: its repeat gets the first decision.

        Raises Unavailable, MissingRoute and OutcomeUnknown where it could not be recorded: that is a block.
        """
        told: dict[str, Any] = {
            "subject": subject,
            "details": None if details is None else dict(details),
            "cost": cost,
            "dry_run": dry_run or None,
            "parent_event_id": parent_event_id,
            "causality": causality,
        }
        return await self._calls.change(
            Decision,
            "POST",
            *("gates", "evaluate"),
            body={"action": action} | {name: value for name, value in told.items() if value is not None},
            query={"explain": explain or None},
            idempotency_key=idempotency_key,
        )

    async def kill_switch(self) -> KillSwitch:
        """What the caller's tenant switched off. Raises NotFound where nobody ever set it."""
        return await self._calls.get(KillSwitch, "gates", "kill-switch")

    async def put_kill_switch(
        self,
        *,
        engaged: bool = False,
        reason: str | None = None,
        switches: Sequence[Switch] = (),
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> KillSwitch:
        """Replace what is switched off: everything, or parts; without arguments nothing is any more."""
        body: dict[str, Any] = {"engaged": engaged, "switches": list(switches)}
        if reason is not None:
            body["reason"] = reason
        return await self._calls.change(
            KillSwitch,
            "PUT",
            *("gates", "kill-switch"),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def config(self, surface_id: str) -> GateConfig:
        """The tenant's own configuration of a surface. Raises NotFound, also where t_system's holds."""
        return await self._calls.get(GateConfig, "gates", "config", surface_id)

    async def put_config(
        self,
        surface_id: str,
        *,
        rules: Sequence[GateRule] = (),
        otherwise: Literal["base", "block"] = "base",
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> GateConfig:
        """Replace which gates guard what. Raises Invalid for a gate that the server has not mounted."""
        return await self._calls.change(
            GateConfig,
            "PUT",
            *("gates", "config", surface_id),
            body={"rules": list(rules), "otherwise": otherwise},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )
