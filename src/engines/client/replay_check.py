"""Reading imported runs back, and telling every difference from the file.

Owns the comparison: canonical JSON against canonical JSON, and counts, so that something doubled shows as
well as something lost. Leaves what should be there to `client/agent_runs.py`.

The spine is read once, from where it stood before the first of the runs began; the threads, blackboards and
memories run by run; the notes in one list.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from engines.client.agent_runs import DATASET_TAG, MEMORY_KEY, Plan
from engines.client.engines import AsyncEngines
from engines.client.replay import CONCURRENCY_DEFAULT, DONE, Progress, progress_of
from engines.client.results import Event, NewEvent, Note
from engines.codec import canonical_json
from engines.errors import Conflict, NotFound

DIFFERENCES_MAX: Final = 1_000
REWARD_TYPE: Final = "rl"


class Difference(msgspec.Struct, frozen=True):
    """What is not as the file says. `what`: missing, doubled, different, unexpected or out of order."""

    kind: str
    record_id: str
    what: str
    run: str


class Checked(msgspec.Struct):
    """What was compared, by kind, and what differed; at most `DIFFERENCES_MAX` are kept, all are counted."""

    compared: Counter[str]
    differences: list[Difference]
    difference_count: int = 0

    def differ(self, kind: str, record_id: str, what: str, run: str) -> None:
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Difference(kind, record_id, what, run))


async def check(
    client: AsyncEngines,
    plans: Sequence[Plan],
    *,
    concurrency: int = CONCURRENCY_DEFAULT,
    on_run: Callable[[Plan], None] | None = None,
) -> Checked:
    """Read everything that the runs became and compare."""
    checked = Checked(Counter(), [])
    notes = await _notes_by_tag(client)
    waiting = iter(plans)
    progresses: list[Progress] = []

    async def work() -> None:
        for plan in waiting:
            one = _Check(client, plan, checked)
            progress = await one.memory()
            if progress is not None:
                progresses.append(progress)
            await one.thread()
            await one.blackboard()
            one.note(notes.get(plan.run_tag, []), progress)
            if on_run is not None:
                on_run(plan)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(plans))):
            group.create_task(work())
    await _check_spine(client, plans, progresses, checked)
    return checked


async def _notes_by_tag(client: AsyncEngines) -> dict[str, list[Note]]:
    """Every imported note under each of its tags, among them the one that names its run."""
    found: defaultdict[str, list[Note]] = defaultdict(list)
    async for note in client.notes.each(tag=DATASET_TAG):
        for tag in note.tags:
            found[tag].append(note)
    return found


class _Check:
    """The comparison of one run."""

    def __init__(self, client: AsyncEngines, plan: Plan, checked: Checked) -> None:
        self._client = client
        self._plan = plan
        self._checked = checked

    async def memory(self) -> Progress | None:
        run_id = self._plan.run_id
        self._checked.compared["memory entries"] += 1
        try:
            entry = await self._client.memory.get(run_id, MEMORY_KEY)
            progress = progress_of(entry.value)
        except NotFound:
            self._differ("memory entry", run_id, "missing")
            return None
        except Conflict:
            self._differ("memory entry", run_id, "different")
            return None
        expected = (DONE, self._plan.digest, canonical_json(self._plan.facts))
        if (progress.state, progress.digest, canonical_json(progress.facts)) != expected:
            self._differ("memory entry", run_id, "different")
        return progress

    async def thread(self) -> None:
        try:
            events = [event async for event in self._client.streams.each(self._plan.run_id)]
        except NotFound:
            events = []
        compare_log("thread event", self._plan.messages, events, self._plan, self._checked)

    async def blackboard(self) -> None:
        found = {entry.key: entry async for entry in self._client.blackboard.each(self._plan.run_id)}
        self._checked.compared["tool results"] += len(self._plan.results)
        for result in self._plan.results:
            entry = found.pop(result.key, None)
            name = f"{self._plan.run_id}/{result.key}"
            if entry is None:
                self._differ("tool result", name, "missing")
            elif canonical_json(entry.value) != canonical_json(result.value):
                self._differ("tool result", name, "different")
            elif entry.version != 1:
                self._differ("tool result", name, "doubled")
        for key in found:
            self._differ("tool result", f"{self._plan.run_id}/{key}", "unexpected")

    def note(self, notes: Sequence[Note], progress: Progress | None) -> None:
        self._checked.compared["notes"] += 1
        if not notes:
            self._differ("note", self._plan.run_tag, "missing")
        for note in notes[1:]:
            self._differ("note", note.note_id, "doubled")
        for note in notes[:1]:
            expected = self._plan.note
            same = (note.title, note.content, note.content_type, note.tags) == (
                expected.title,
                expected.content,
                expected.content_type,
                expected.tags,
            )
            if not same or (progress is not None and progress.note_id != note.note_id):
                self._differ("note", note.note_id, "different")

    def _differ(self, kind: str, record_id: str, what: str) -> None:
        self._checked.differ(kind, record_id, what, self._plan.name)


async def _check_spine(
    client: AsyncEngines, plans: Sequence[Plan], progresses: Sequence[Progress], checked: Checked
) -> None:
    user_id = (await client.me()).user_id
    by_run: dict[str, list[Event]] = {plan.run_id: [] for plan in plans}
    earliest = min(progresses, key=lambda progress: progress.spine_position, default=None)
    after = None if earliest is None else earliest.spine_after
    async for event in client.events.each(after=after, user_id=user_id):
        # Decisions and entries of the ledger are the server's own; rewards are client/guarded_check.py's.
        if event.run_id in by_run and event.source != "system" and event.event_type != REWARD_TYPE:
            by_run[event.run_id].append(event)
    for plan in plans:
        compare_log("spine event", plan.events, by_run[plan.run_id], plan, checked)


def compare_log(
    kind: str, expected: Sequence[NewEvent], found: Sequence[Event], plan: Plan, checked: Checked
) -> None:
    """A log holds exactly the expected events, once each, in their order."""
    checked.compared[f"{kind}s"] += len(expected)
    wanted = {str(event.event_id): event for event in expected}
    seen: Counter[str] = Counter()
    for event in found:
        seen[event.event_id] += 1
        if event.event_id not in wanted:
            checked.differ(kind, event.event_id, "unexpected", plan.name)
        elif canonical_json(_told(event)) != canonical_json(_planned(wanted[event.event_id])):
            checked.differ(kind, event.event_id, "different", plan.name)
    for event_id in wanted:
        if seen[event_id] == 0:
            checked.differ(kind, event_id, "missing", plan.name)
        elif seen[event_id] > 1:
            checked.differ(kind, event_id, "doubled", plan.name)
    order = [event.event_id for event in found if event.event_id in wanted]
    if sorted(order, key=list(wanted).index) != order:
        checked.differ(kind, plan.run_id, "out of order", plan.name)


def _told(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _COMPARED}


def _planned(event: NewEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _COMPARED}


_COMPARED: Final = (
    "event_type",
    "payload",
    "run_id",
    "step_id",
    "parent_event_id",
    "thread_id",
    "source",
)
