"""Where the gates are tested: a control plane and a spine on one database, a clock moved by hand.

Owns `House`, which is one process: its own directory, spine and gates. A second one on the same database is
another process. Stores whose gates are tested by their verdicts alone are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engines.control.directory import Directory
from engines.control.gates import GateConfigs, KillSwitches
from engines.control.records import GateConfig, GateRule, Os, Surface
from engines.control.service import Service
from engines.control.store import PARTITION, Actor, ControlStore
from engines.control.tables import OSES, SURFACES
from engines.core.idempotency import Request, identify
from engines.core.outbox import Backlog
from engines.safety.asks import Ask, EvaluationInput, Verdict
from engines.safety.chain import GATES_TIMEOUT_S
from engines.safety.evaluations import Gates
from engines.safety.gates import Gate
from engines.scope import RequestContext
from engines.stores.events import Event, EventFilter, EventSpine
from tests.stores.home import Home, context

ACTOR = Actor(user_id="test", tenant_id="t_system", request_id="test", tenants=("t_system",))
SAFETY = EventFilter(event_type="safety")
ADMIN = context(tenant_id="t_system", user_id="sam", roles=("admin",))
ACTION = "refund.create"


def keyed(key: str, body: bytes = b"{}") -> Request:
    """The request that an Idempotency-Key names."""
    return identify("t_one", "prod", "ada", "POST", "/gates/evaluate", key, body=body)


def asked(action: str = ACTION, **fields: Any) -> EvaluationInput:
    return EvaluationInput(action=action, **fields)


class Admits:
    """Routing to a spine that is always there, for services that ask before they change anything."""

    async def check(self, kind: str, context: RequestContext) -> None:
        """It is."""


class Saying:
    """A gate that says what it was made to say, and counts how often it was asked."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        self.name = name
        self.verdict = verdict
        self.asked: list[Ask] = []

    async def judge(self, ask: Ask) -> Verdict:
        self.asked.append(ask)
        return self.verdict


class Taking(Saying):
    """The same for one that takes something: `held` is what it holds, by evaluation."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        super().__init__(name, verdict)
        self.held: set[str] = set()
        self.taken = 0

    async def judge(self, ask: Ask) -> Verdict:
        if not ask.dry_run:
            self.taken += 1
            self.held.add(ask.evaluation_id)
        return await super().judge(ask)

    async def undo(self, ask: Ask) -> None:
        self.held.discard(ask.evaluation_id)


class House:
    """One process of a deployment."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.store = ControlStore(home.documents, Backlog(home.documents, PARTITION, home.clock))
        self.directory = Directory(self.store, home.clock)
        self.spine = EventSpine(home, home.ids, home.clock)
        self.service = Service(self.store, Admits())
        self.switches = KillSwitches(self.service)
        self.mount(())

    def mount(self, gates: Sequence[Gate], *, timeout_s: float = GATES_TIMEOUT_S) -> None:
        """With these gates beside the kill switch."""
        self.gates = Gates(
            self.directory, self.spine, self.home.ids, self.home.clock, gates=gates, timeout_s=timeout_s
        )
        self.configs = GateConfigs(self.service, self.gates.mounted)

    async def open(self) -> None:
        """The surfaces chat and canvas are there; changes of this process are adopted by it at once."""
        self.store.on_change = self.directory.refresh
        await self.store.seed(OSES, ["engines"], Os(os_id="engines", name="Engines"), actor=ACTOR)
        for name in ("chat", "canvas"):
            surface = Surface(surface_id=name, os_id="engines", name=name, aliases=(f"{name}²",))
            await self.store.seed(SURFACES, [name], surface, actor=ACTOR)
        await self.directory.refresh()

    async def close(self) -> None:
        await self.gates.close()
        await self.spine.close()

    async def guarding(self, *gates: str, action: str = ACTION, who: RequestContext | None = None) -> None:
        """A rule of the tenant on its surface: these gates guard the action."""
        rule = GateRule(action=action, gates=gates)  # type: ignore[arg-type]
        config = GateConfig(tenant_id="t_one", surface_id="chat", rules=(rule,))
        await self.configs.put(who or context(), config)

    async def decisions(self, who: RequestContext | None = None) -> list[Event]:
        """Every safety event of the tenant's spine, in order."""
        return list((await self.spine.list(who or context(), SAFETY)).items)

    async def payloads(self) -> list[dict[str, Any]]:
        found = [event.payload for event in await self.decisions()]
        assert all(payload is not None for payload in found)
        return [payload for payload in found if payload is not None]


def passes(**fields: Any) -> Verdict:
    return Verdict(result="pass", **fields)


def refuses(reason_code: str = "below_floor", **fields: Any) -> Verdict:
    return msgspec.convert({"result": "block", "reason_code": reason_code, **fields}, Verdict)
