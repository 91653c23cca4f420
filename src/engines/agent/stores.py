"""The agent's stores together, as programs and the edge are given them."""

from __future__ import annotations

from typing import NamedTuple

from engines.agent.checkpoints import Checkpoints
from engines.agent.forks import Forks
from engines.agent.memory import AgentMemory
from engines.agent.messages import Messages
from engines.agent.sessions import Sessions
from engines.agent.telemetry import Telemetry
from engines.agent.traces import Traces
from engines.clock import Clock
from engines.core.place import Places
from engines.ids import Ids


class AgentStores(NamedTuple):
    """What `engines.agent` of an open Engines has."""

    sessions: Sessions
    messages: Messages
    checkpoints: Checkpoints
    forks: Forks
    traces: Traces
    memory: AgentMemory
    telemetry: Telemetry


def agent_stores(places: Places, ids: Ids, clock: Clock) -> AgentStores:
    """The stores on these places; nothing is read yet."""
    sessions = Sessions(places, ids, clock)
    checkpoints = Checkpoints(places, sessions, clock)
    return AgentStores(
        sessions=sessions,
        messages=Messages(places, sessions, clock),
        checkpoints=checkpoints,
        forks=Forks(places, sessions, checkpoints),
        traces=Traces(places, sessions, clock),
        memory=AgentMemory(places, clock),
        telemetry=Telemetry(places, clock),
    )
