"""Rules of the contract in force: the project's before the tenant's, the newest, a second old at most."""

from __future__ import annotations

from typing import Any

import pytest

from engines import catalogue
from engines.core.records import Condition
from engines.errors import MissingRoute
from engines.stores.attribution_contracts import AGE_MAX_S, SCHEMA, ContractDefinitions
from engines.stores.definition_records import DefinitionInput
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context

PRESENT = Condition(versions=("*",))


@pytest.fixture
def contracts(told: Told) -> ContractDefinitions:
    return ContractDefinitions(told.definitions, told.home.clock)


def blob(**fields: Any) -> DefinitionInput:
    return DefinitionInput(json_blob={"platform": "web", **fields})


async def in_force(contracts: ContractDefinitions, **changes: Any) -> str | None:
    """What describes the contract that holds for the context with `changes`."""
    found = await contracts.contract_in_force(context(**changes), "web")
    return None if found is None else found.terms.description


async def test_a_projects_own_comes_before_the_tenants(told: Told, contracts: ContractDefinitions) -> None:
    await told.definitions.create(context(), SCHEMA, blob(description="tenant"))
    await told.definitions.create(context(project_id="p1"), SCHEMA, blob(description="project"))
    assert await in_force(contracts) == "tenant"
    assert await in_force(contracts, project_id="p1") == "project"
    assert await in_force(contracts, project_id="p2") == "tenant"
    assert await in_force(contracts, tenant_id="t_two") is None
    assert await in_force(contracts, env="dev") is None
    assert await in_force(contracts, surface_id="canvas") == "tenant"


async def test_a_new_version_and_a_deletion_hold_within_a_second(
    told: Told, contracts: ContractDefinitions
) -> None:
    made = await told.definitions.create(context(), SCHEMA, blob(description="one"))
    assert await in_force(contracts) == "one"
    await told.definitions.put(context(), SCHEMA, made.record.id, blob(description="two"), condition=PRESENT)
    told.home.clock.advance(AGE_MAX_S)
    assert await in_force(contracts) == "two"
    await told.definitions.delete(context(), SCHEMA, made.record.id, condition=PRESENT)
    told.home.clock.advance(AGE_MAX_S)
    assert await in_force(contracts) is None


async def test_it_is_read_once_a_second(told: Told, contracts: ContractDefinitions) -> None:
    await told.definitions.create(context(), SCHEMA, blob())
    await told.announcements.close()  # What tells the spine of it reads as well.
    await in_force(contracts)
    told.home.driver.calls.clear()
    for _ in range(5):
        await in_force(contracts)
    assert told.home.driver.calls == []
    told.home.clock.advance(AGE_MAX_S)
    await in_force(contracts)
    assert told.home.driver.calls == ["get", "get"]


async def test_whoever_may_send_beacons_alone_may_not_read_contracts_and_is_judged_by_them(
    told: Told, contracts: ContractDefinitions
) -> None:
    await told.definitions.create(context(), SCHEMA, blob(description="one"))
    assert await in_force(contracts, permissions=frozenset({"analytics.beacon"})) == "one"


async def test_without_a_route_of_contracts_it_is_a_missing_route(
    home: Home, contracts: ContractDefinitions
) -> None:
    home.missing = {catalogue.ATTRIBUTION}
    with pytest.raises(MissingRoute):
        await in_force(contracts)
