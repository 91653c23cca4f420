"""What single kinds do beyond being kept: each through the client, by two owners of one tenant.

Owns one function a verb. What is refused, and why, is tested where each kind is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final

import pytest

from engines.client import (
    AsyncEngines,
    BudgetLimit,
    GateRule,
    NewAnalyticsEvent,
    NewBudgetPolicy,
    NewEvent,
    RateLimit,
    Switch,
)
from engines.errors import Conflict, Forbidden, Invalid, NotFound, Throttled

Verb = Callable[[AsyncEngines, AsyncEngines], Awaitable[None]]
EVERYBODY: Final = {"targetingKey": "u"}


async def versions_are_compared_restored_and_copied(one: AsyncEngines, another: AsyncEngines) -> None:
    made = await one.flows.create({"nodes": [{"id": "a"}]})
    changed = await another.flows.put(made.id, {"nodes": [{"id": "b"}]}, if_match=made.etag)
    (change,) = (await one.flows.diff(made.id)).changes
    assert change.path == "/nodes/0/id"
    await one.flows.delete(made.id, if_match=changed.etag)
    with pytest.raises(NotFound):
        await another.flows.get(made.id)
    restored = await another.flows.restore(made.id, 1)
    assert (restored.version, restored.json_blob, restored.restored_from) == (4, made.json_blob, 1)
    copied = await one.flows.copy(made.id, env="dev")
    assert (copied.env, copied.json_blob) == ("dev", made.json_blob)
    history = [version async for version in one.flows.versions(made.id)]
    assert [version.user_id for version in history] == ["owner", "other", "owner", "other"]
    assert [version.deleted for version in history] == [False, False, True, False]


async def a_lock_is_approved_by_another(one: AsyncEngines, another: AsyncEngines) -> None:
    lock = await one.strategy_locks.create({"allowed_actions": ["*"]})
    with pytest.raises(Forbidden):
        await one.strategy_locks.approve(lock.id, if_match=lock.etag)
    approved = await another.strategy_locks.approve(lock.id, if_match=lock.etag)
    assert (approved.state or {})["status"] == "approved"


async def a_flag_is_evaluated(one: AsyncEngines, another: AsyncEngines) -> None:
    blob = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
    await one.flags.create(blob, definition_id="flag")
    assert (await another.ofrep.evaluate("flag", EVERYBODY)).value is True
    every = await another.ofrep.evaluate_all(EVERYBODY)
    assert every is not None
    assert [flag.key for flag in every.flags] == ["flag"]
    assert await one.ofrep.evaluate_all(EVERYBODY, known_etag=every.etag) is None


async def a_kpi_is_read_and_warms_its_surface(one: AsyncEngines, another: AsyncEngines) -> None:
    await one.kpis.create({"aggregation": "sum", "ceiling": 5}, definition_id="k")
    for value in (1, 2, 3):
        await another.kpis.measure("k", value)
    reading = await one.kpis.reading("k")
    assert (reading.value, reading.status, reading.count) == (6, "above", 3)
    for setting, value in (("floors", 0), ("ceilings", 12), ("weights", 1)):
        await one.temperature.create({"values": {"k": value}}, definition_id=setting)
    assert (await another.temperature.reading("chat")).temperature == 0.5


async def a_dangerous_action_waits_for_a_yes(one: AsyncEngines, another: AsyncEngines) -> None:
    await one.firearms.create({"risk_level": "high", "human_approval": True}, definition_id="payments")
    await one.firearm_bindings.create({"class_id": "payments", "actions": ["refund"]}, definition_id="b")
    await one.firearm_licences.create({"class_id": "payments"}, definition_id="l")
    refused = await one.gates.evaluate("refund", subject="order")
    assert (refused.decision, refused.gate) == ("block", "firearms")
    asked = await one.approvals.request("refund", "order", "it is broken")
    with pytest.raises(Conflict):
        await one.approvals.request("refund", "order", "it is broken")
    answered = await another.approvals.answer(asked.approval_id, "yes", if_match=asked.etag)
    assert answered.status == "granted"
    assert [approval.status async for approval in one.approvals.each()] == ["granted"]


async def a_switch_blocks_and_the_spine_has_both_decisions(one: AsyncEngines, another: AsyncEngines) -> None:
    rule = GateRule(action="publish", gates=("kill_switch",))
    await one.gates.put_config("canvas", rules=[rule])
    passed = await another.gates.evaluate("publish", explain=True)
    switch = await one.gates.put_kill_switch(switches=[Switch(action="publish")])
    blocked = await one.gates.evaluate("publish", parent_event_id=passed.event_id)
    assert (passed.decision, blocked.decision, blocked.gate) == ("pass", "block", "kill_switch")
    for decision in (passed, blocked):
        event = await another.events.get(decision.event_id)
        assert (event.event_type, (event.payload or {})["result"]) == ("safety", decision.decision)
    await one.gates.put_kill_switch(if_match=switch.etag)


async def a_budget_holds_and_adds_up(one: AsyncEngines, another: AsyncEngines) -> None:
    limit = BudgetLimit(limit_id="all", period="total", hard=Decimal(2))
    await one.budget.put_policy(NewBudgetPolicy(currency="USD", limits=(limit,)))
    first, second = [await client.budget.reserve(Decimal(1), ttl_seconds=600) for client in (one, another)]
    with pytest.raises(Throttled):
        await one.budget.reserve(Decimal(1), ttl_seconds=600)
    await another.budget.settle(first.reservation_id, cost=Decimal("0.3"))
    await one.budget.release(second.reservation_id)
    summary = await one.budget.summary(verify=True)
    assert summary.verification is not None
    assert (summary.verification.ok, summary.total.cost) == (True, Decimal("0.3"))
    assert [(limit.spent, limit.held) for limit in summary.limits] == [(Decimal("0.3"), Decimal(0))]


async def a_link_is_tagged_and_its_event_validated(one: AsyncEngines, another: AsyncEngines) -> None:
    blob = {"platform": "web", "utm_template": {"utm_source": "{s}"}, "allowed_hosts": ["example.com"]}
    contract = await one.attribution.create(blob)
    link = await another.analytics.tag_link("https://example.com/a", "web", values={"s": "news"})
    assert link.url == "https://example.com/a?utm_source=news"
    good, bad = (
        NewAnalyticsEvent(event_type="view", platform="web", utm_source="news", session_id="s"),
        NewAnalyticsEvent(event_type="view", platform="web", utm_medium="email", session_id="s"),
    )
    ingested = await one.analytics.ingest([good, bad])
    assert (ingested.accepted, ingested.refused) == (1, 1)
    (found,) = [event async for event in another.analytics.each(session_id="s", platform="web")]
    assert (found.utm_source, found.contract) != (None, None)
    assert found.contract is not None
    assert found.contract.id == contract.id


async def a_limit_throttles(one: AsyncEngines, another: AsyncEngines) -> None:
    dev = one.bound(env="dev")
    limit = RateLimit(name="reads", per=("tenant",), route="GET /notes", limit=2, window_seconds=3600)
    await dev.rate_limits.put([limit], if_absent=True)
    reading = another.bound(env="dev")
    for _ in range(2):
        await reading.notes.page()

    async def read_on() -> None:
        for _ in range(3):  # The hour that they are counted in may end meanwhile.
            await reading.notes.page()

    with pytest.raises(Throttled) as refused:
        await read_on()
    assert refused.value.resource_kind == "rate_limit_store"


async def a_session_is_forked_and_both_go_on(one: AsyncEngines, another: AsyncEngines) -> None:
    first = await one.sessions.create(title="first")
    said = [await one.messages.append(first.session_id, "user", number) for number in range(3)]
    state = await one.checkpoints.save(first.session_id, {"at": 3})
    await one.messages.append(first.session_id, "assistant", "later")
    with pytest.raises(NotFound):
        await another.checkpoints.fork(state.checkpoint_id)
    forks = await asyncio.gather(
        *(one.checkpoints.fork(state.checkpoint_id, idempotency_key="fork") for _ in range(2))
    )
    assert forks[0] == forks[1]
    fork = forks[0].session_id
    assert [message.content async for message in one.messages.each(fork)] == [0, 1, 2]
    rest = [message.number async for message in one.messages.each(first.session_id, after=said[1].cursor)]
    assert rest == [3, 4]
    await one.sessions.delete(first.session_id)
    assert (await one.messages.append(fork, "user", 3)).number == 4
    assert [checkpoint.state async for checkpoint in one.checkpoints.each(fork)] == [{"at": 3}]
    with pytest.raises(NotFound):
        await one.checkpoints.get(state.checkpoint_id)
    assert [session.session_id async for session in one.sessions.each()] == [fork]


async def what_learning_reads_is_typed_and_exported(one: AsyncEngines, another: AsyncEngines) -> None:
    reward = {"kind": "reward", "value": 1.0}
    await one.events.append([NewEvent(event_type="rl", payload=reward)])
    with pytest.raises(Invalid):
        await one.events.append([NewEvent(event_type="rl", payload={"kind": "reward", "value": "high"})])
    page = await another.events.export_page(event_type="rl")
    assert [event.payload for event in page.items] == [reward]
    assert (await another.events.verify()).ok


VERBS: Final[tuple[Verb, ...]] = (
    versions_are_compared_restored_and_copied,
    a_lock_is_approved_by_another,
    a_flag_is_evaluated,
    a_kpi_is_read_and_warms_its_surface,
    a_dangerous_action_waits_for_a_yes,
    a_switch_blocks_and_the_spine_has_both_decisions,
    a_budget_holds_and_adds_up,
    a_link_is_tagged_and_its_event_validated,
    a_limit_throttles,
    a_session_is_forked_and_both_go_on,
    what_learning_reads_is_typed_and_exported,
)
