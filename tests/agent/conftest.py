"""The agent's stores on one real database, for each test its own: a file, or a schema of PostgreSQL."""

from __future__ import annotations

import pytest

from engines.agent.stores import AgentStores, agent_stores
from tests.stores.conftest import home, open_driver, shared_database
from tests.stores.home import Home

__all__ = ["home", "open_driver", "shared_database"]


@pytest.fixture
def agent(home: Home) -> AgentStores:
    return agent_stores(home, home.ids, home.clock)
