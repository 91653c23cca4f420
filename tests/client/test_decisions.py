"""What kinds of definition do, by the client: both decode what a real server answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.client import AsyncEngines, Engines, LockReview, Missing
from engines.errors import Conflict, Forbidden, Invalid, NotFound, PreconditionFailed
from tests.cli.lab import LabProcess


@pytest.fixture
def member(lab: LabProcess) -> Iterator[Engines]:
    with Engines(lab.file.url, lab.file.user("member").token) as client:
        yield client


@pytest.fixture
def owner(lab: LabProcess) -> Iterator[Engines]:
    with Engines(lab.file.url, lab.file.user("owner").token) as client:
        yield client


def test_a_lock_is_decided(member: Engines, owner: Engines) -> None:
    for lock_id in ("l1", "l2"):
        member.strategy_locks.create({"allowed_actions": ["*"]}, definition_id=lock_id)
    first, second = owner.strategy_locks.get("l1"), owner.strategy_locks.get("l2")
    with pytest.raises(Forbidden):
        member.strategy_locks.approve("l1", if_match=first.etag)
    review = LockReview(verdict="pass", reviewers=("a", "b"))
    approved = owner.strategy_locks.approve("l1", review=review, note="n", if_match=first.etag)
    assert approved.state is not None
    assert (approved.state["status"], approved.state["review"]["reviewers"]) == ("approved", ["a", "b"])
    member.strategy_locks.put("l2", {"allowed_actions": ["book_*"]}, if_match=second.etag)
    for decide in (owner.strategy_locks.approve, owner.strategy_locks.reject):
        with pytest.raises(PreconditionFailed):
            decide("l2", if_match=second.etag)
    rejected = owner.strategy_locks.reject("l2", if_match=owner.strategy_locks.get("l2").etag)
    assert rejected.state is not None
    assert rejected.state["status"] == "rejected"
    with pytest.raises(Conflict) as caught:
        owner.strategy_locks.approve("l2", if_match=rejected.etag)
    assert not isinstance(caught.value, PreconditionFailed)


def test_a_kpi_is_measured_and_read_and_warms_its_surface(member: Engines, owner: Engines) -> None:
    with pytest.raises(NotFound):
        member.kpis.measure("k1", 1)
    with pytest.raises(Forbidden):
        member.kpis.create({"aggregation": "sum"}, definition_id="k1")
    owner.kpis.create({"aggregation": "sum", "ceiling": 5}, definition_id="k1")
    added = [member.kpis.measure("k1", value, labels={"n": str(value)}) for value in (1, 2, 3)]
    assert list(member.kpis.each_measurement("k1")) == added
    page = member.kpis.measurements("k1", limit=1, after=added[0].cursor)
    assert page.items == (added[1],)
    reading = member.kpis.reading("k1")
    assert (reading.value, reading.status, reading.count, reading.last_position) == (6, "above", 3, 3)
    assert member.temperature.reading("chat").missing == (Missing("weights"),)
    for setting, value in (("floors", 0), ("ceilings", 12), ("weights", 1)):
        owner.temperature.create({"values": {"k1": value}}, definition_id=setting)
    warm = member.temperature.reading("chat")
    assert (warm.temperature, warm.missing, warm.kpis[0].reading) == (0.5, (), warm.kpis[0].reading)
    assert warm.kpis[0].heat == 0.5


async def test_an_approval_is_asked_for_and_answered(lab: LabProcess) -> None:
    def client_as(user: str) -> AsyncEngines:
        return AsyncEngines(lab.file.url, lab.file.user(user).token)

    async with client_as("system_admin") as root, client_as("member") as asking, client_as("owner") as owner:
        await root.firearms.create({"risk_level": "high"}, definition_id="payments")
        bound = {"class_id": "payments", "actions": ["refund"]}
        await root.firearm_bindings.create(bound, definition_id="payments")
        with pytest.raises(Invalid):
            await asking.approvals.request("read", "inbox", "why not")
        asked = await asking.approvals.request("refund", "order", "broken", context={"n": 1}, ttl_seconds=60)
        assert (asked.status, asked.class_id, asked.context) == ("pending", "payments", {"n": 1})
        assert (await owner.approvals.page(status="pending")).items == (asked,)
        answered = await owner.approvals.answer(asked.approval_id, "no", note="keep it", if_match=asked.etag)
        assert answered.answer is not None
        assert (answered.status, answered.answer.note) == ("refused", "keep it")
        assert await asking.approvals.get(asked.approval_id) == answered
        assert [one async for one in asking.approvals.each()] == [answered]
