"""Recorded agent runs: from a file of chat transcripts to the records that tell each of them.

Owns the shape of the file, every id, and what is written of a run. Nothing here speaks to a server: writing
is in `client/replay.py`, reading back in `client/replay_check.py`.

The file is a JSON list of runs: `task_id`, `trial`, `reward`, `info`, and `traj`, the chat messages with
`role`, `content`, `tool_calls`, `tool_call_id` and `name`. Ids are UUIDv5 (RFC 9562, section 5.5) in a
namespace named after the dataset, of the canonical JSON of

    [task_id, trial]                  the run: its run, thread, session
    [task_id, trial, i]               message i
    [task_id, trial, i, j]            tool call j of message i

because the ids of tool calls repeat, across runs and within one. The same file under the same dataset name is
therefore the same records, however often it is read.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.client.results import NewEvent, NewNote, NoteSource, Source
from engines.codec import canonical_json, encode_json, escaped_bytes
from engines.errors import Invalid
from engines.scope import check_id

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:engines:agent-runs")
FILE_BYTES_MAX: Final = 1024 * 1024 * 1024
DATASET_CHARS_MAX: Final = 60
MEMORY_KEY: Final = "run"
DATASET_TAG: Final = "agent-runs"
# What the server stamps on an event (ids, scope, times) is below this.
_STAMP_BYTES: Final = 1_500

# Who speaks, as the spine names sources. A system message is the agent's own instruction.
_SOURCES: Final[dict[str, Source]] = {"user": "ui", "assistant": "agent", "system": "agent", "tool": "tool"}


class AgentRun(msgspec.Struct, frozen=True):
    """One run as the file has it. Messages stay as they are, whatever else they hold."""

    task_id: int | str
    trial: int
    reward: float
    traj: list[dict[str, Any]]
    info: dict[str, Any] = {}


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool answered: an entry on the run's blackboard."""

    key: str
    value: dict[str, Any]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run becomes. `events` go to the spine; `messages`, those of them that are said, to
    the thread; the run's id names its thread, its session and its blackboard too.
    """

    run_id: str
    name: str
    digest: str
    events: tuple[NewEvent, ...]
    messages: tuple[NewEvent, ...]
    results: tuple[ToolResult, ...]
    facts: dict[str, Any]
    note: NewNote
    run_tag: str

    @property
    def records(self) -> int:
        """How many records the run becomes: with its memory entry and its note."""
        return len(self.events) + len(self.messages) + len(self.results) + 2


def read_agent_runs(path: Path) -> list[AgentRun]:
    """The runs of a file. Raises Invalid for a file that is not one, or names a run twice."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Invalid(f"{path.name} is larger than {FILE_BYTES_MAX} bytes", field="file")
        runs = msgspec.json.decode(path.read_bytes(), type=list[AgentRun])
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", field="file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path.name} is no list of agent runs: {error}", field="file") from error
    seen: set[str] = set()
    for run in runs:
        identity = canonical_json([run.task_id, run.trial])
        if identity in seen:
            raise Invalid(f"{path.name} has trial {run.trial} of task {run.task_id} twice", field="file")
        seen.add(identity)
    return runs


def dataset_of(path: Path, name: str | None = None) -> str:
    """The dataset's name: `name`, or the file's without its ending. Raises Invalid where it is no id."""
    dataset = check_id(path.stem if name is None else name, "dataset")
    if len(dataset) > DATASET_CHARS_MAX:
        raise Invalid(f"a dataset's name has at most {DATASET_CHARS_MAX} characters", field="dataset")
    return dataset


def plan_of(dataset: str, run: AgentRun) -> Plan:
    """What `run` becomes. The same input gives the same plan, to the byte."""
    ids = _RunIds(dataset, run)
    events: list[NewEvent] = []
    messages: list[NewEvent] = []
    results: list[ToolResult] = []
    calls_open: dict[str, list[tuple[int, int]]] = {}
    for index, message in enumerate(run.traj):
        answered = _answered_call(message, calls_open)
        said = _message_event(ids, run, index, message, answered)
        events.append(said)
        messages.append(said)
        if message.get("role") == "tool":
            results.append(_tool_result(ids, index, message, answered))
        calls = _calls_of(message)
        if calls:
            calls_open = _calls_open(index, calls)
        events.extend(_call_event(ids, run, index, number, call) for number, call in enumerate(calls))
    tag = f"run-{ids.run_id}"
    facts = {
        "dataset": dataset,
        "task_id": run.task_id,
        "trial": run.trial,
        "reward": run.reward,
        "thread_id": ids.run_id,
        "messages": len(messages),
        "tool_calls": len(events) - len(messages),
        "tool_results": len(results),
    }
    return Plan(
        run_id=ids.run_id,
        name=f"task {run.task_id}, trial {run.trial}",
        digest=hashlib.sha256(canonical_json(run).encode()).hexdigest(),
        events=tuple(events),
        messages=tuple(messages),
        results=tuple(results),
        facts=facts,
        note=_note(run, facts, tag, ids.run_id),
        run_tag=tag,
    )


class _RunIds:
    def __init__(self, dataset: str, run: AgentRun) -> None:
        self.dataset = dataset
        self._namespace = uuid.uuid5(NAMESPACE, dataset)
        self._run = (run.task_id, run.trial)
        self.run_id = self._id()

    def message(self, index: int) -> str:
        return self._id(index)

    def call(self, index: int, number: int) -> str:
        return self._id(index, number)

    def _id(self, *indexes: int) -> str:
        return str(uuid.uuid5(self._namespace, canonical_json([*self._run, *indexes])))


def _calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Invalid("tool_calls is a list of objects", field="traj.tool_calls")
    return calls


def _calls_open(index: int, calls: list[dict[str, Any]]) -> dict[str, list[tuple[int, int]]]:
    """The places of message `index`'s calls by the file's own ids, which repeat even within one message."""
    found: dict[str, list[tuple[int, int]]] = {}
    for number, call in enumerate(calls):
        found.setdefault(str(call.get("id")), []).append((index, number))
    return found


def _answered_call(
    message: dict[str, Any], calls_open: dict[str, list[tuple[int, int]]]
) -> tuple[int, int] | None:
    """What a tool's message answers: of the latest message with calls, the first open one of its id."""
    waiting = calls_open.get(str(message.get("tool_call_id"))) if message.get("role") == "tool" else None
    return waiting.pop(0) if waiting else None


def _message_event(
    ids: _RunIds, run: AgentRun, index: int, message: dict[str, Any], answered: tuple[int, int] | None
) -> NewEvent:
    parent = ids.message(index - 1) if index > 0 else None
    return NewEvent(
        event_id=ids.message(index),
        event_type="message",
        run_id=ids.run_id,
        thread_id=ids.run_id,
        step_id=str(index),
        parent_event_id=parent if answered is None else ids.call(*answered),
        source=_SOURCES.get(str(message.get("role")), "connector"),
        payload=_payload(ids, run, message_index=index, message=message),
    )


def _call_event(ids: _RunIds, run: AgentRun, index: int, number: int, call: dict[str, Any]) -> NewEvent:
    return NewEvent(
        event_id=ids.call(index, number),
        event_type="tool_call",
        run_id=ids.run_id,
        thread_id=ids.run_id,
        step_id=f"{index}.{number}",
        parent_event_id=ids.message(index),
        source="agent",
        payload=_payload(ids, run, message_index=index, call_index=number, tool_call=call),
    )


def _payload(ids: _RunIds, run: AgentRun, **rest: Any) -> dict[str, Any]:
    return {"dataset": ids.dataset, "task_id": run.task_id, "trial": run.trial, **rest}


def _tool_result(
    ids: _RunIds, index: int, message: dict[str, Any], answered: tuple[int, int] | None
) -> ToolResult:
    """Named after its call, or after its own message where it answers none that is open."""
    key = f"message-{index}" if answered is None else f"call-{answered[0]}-{answered[1]}"
    value = {
        "event_id": ids.message(index),
        "call_event_id": None if answered is None else ids.call(*answered),
        "name": message.get("name"),
        "content": message.get("content"),
    }
    return ToolResult(key, value)


def _note(run: AgentRun, facts: dict[str, Any], tag: str, run_id: str) -> NewNote:
    outcome = "succeeded" if run.reward >= 1 else "failed"
    lines = [
        f"Trial {run.trial} of task {run.task_id} of {facts['dataset']} **{outcome}**.",
        "",
        f"- reward: {run.reward:g}",
        f"- messages: {facts['messages']}",
        f"- tool calls: {facts['tool_calls']}",
        f"- thread: {run_id}",
    ]
    return NewNote(
        title=f"{facts['dataset']}: task {run.task_id}, trial {run.trial} {outcome}",
        content="\n".join(lines),
        content_type="markdown",
        tags=(DATASET_TAG, facts["dataset"], tag),
        source=NoteSource(run_id=run_id),
    )


def batches(events: Sequence[NewEvent], *, count_max: int, bytes_max: int) -> Iterator[Sequence[NewEvent]]:
    """Successive parts of `events`, each within both limits; one event past `bytes_max` goes alone."""
    part: list[NewEvent] = []
    size = 0
    for event in events:
        weight = _weight(event)
        if part and (len(part) == count_max or size + weight > bytes_max):
            yield part
            part, size = [], 0
        part.append(event)
        size += weight
    if part:
        yield part


def _weight(event: NewEvent) -> int:
    return escaped_bytes(encode_json(event)) + _STAMP_BYTES
