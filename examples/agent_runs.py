"""Bring recorded agent runs into Engines, and look at what they became.

Start a lab in one terminal, and run this in another:

    script/run --dir .lab
    .venv/bin/python examples/agent_runs.py --lab .lab

`engines import agent-runs examples/agent-runs.json --lab .lab --verify` does the first half of it from the
command line, with a progress bar and a summary.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from engines.client import AsyncEngines
from engines.client.agent_runs import Plan, plan_of, read_agent_runs
from engines.client.replay import replay
from engines.client.replay_check import check
from engines.clock import SystemClock

HERE = Path(__file__).parent


async def main(lab: Path, file: Path, dataset: str) -> None:
    """Import, compare, and walk through the first run."""
    # A lab writes where it listens and a token for each role. Elsewhere a URL and an API key come from the
    # environment: AsyncEngines(os.environ["ENGINES_URL"], os.environ["ENGINES_TOKEN"]).
    told = json.loads((lab / "lab.json").read_text())
    token = next(user["token"] for user in told["users"].values() if user["role"] == "member")

    # Every id of a plan is derived from the dataset's name and the place in the file, so that the same file
    # becomes the same records however often this runs.
    plans = [plan_of(dataset, run) for run in read_agent_runs(file)]

    async with AsyncEngines(told["url"], token) as client:
        me = await client.me()
        print(f"As {me.user_id} of {me.tenant_id}, env {me.env}, on surface {me.surface_id}:")

        tally = await replay(client, plans, clock=SystemClock())
        print(f"  runs     {dict(tally.runs)}")
        print(f"  written  {dict(tally.written)}")
        print(f"  there    {dict(tally.found)}")

        checked = await check(client, plans)
        print(f"  compared {dict(checked.compared)}, differences: {checked.difference_count}\n")

        await show(client, plans[0])


async def show(client: AsyncEngines, plan: Plan) -> None:
    """One run, as each store tells it."""
    print(
        f"{plan.name} is run {plan.run_id}.\n\nIts thread in event_stream, what was said and in which order:"
    )
    async for event in client.streams.each(plan.run_id):
        message = (event.payload or {})["message"]
        print(f"  {event.position:>2} {message['role']:<9} {message['content'] or '(calls tools)'}")

    # On the spine the calls stand as well, each with the message that made it as its parent; a tool's answer
    # has its call as parent. A filtered page may be short and have more behind it: `each` walks them all.
    print("\nIts tool calls on the spine:")
    async for event in client.events.each(event_type="tool_call", run_id=plan.run_id):
        function = (event.payload or {})["tool_call"]["function"]
        print(f"  at {event.position}: {function['name']}({function['arguments']})")

    print("\nIts blackboard, where tools left their results:")
    async for entry in client.blackboard.each(plan.run_id):
        print(f"  {entry.key} (version {entry.version}): {entry.value['content']}")

    print("\nIts session memory:")
    async for remembered in client.memory.each(plan.run_id):
        print(f"  {remembered.key}: reward {remembered.value['facts']['reward']}")

    print("\nThe note with its outcome:")
    async for note in client.notes.each(tag=plan.run_tag):
        print(f"  {note.title}\n")
        print("\n".join(f"  {line}" for line in note.content.splitlines()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lab", type=Path, default=Path(".lab"), help="the lab's directory")
    parser.add_argument("--file", type=Path, default=HERE / "agent-runs.json", help="a JSON list of runs")
    parser.add_argument("--dataset", default="example", help="the name from which ids derive")
    options = parser.parse_args()
    asyncio.run(main(options.lab, options.file, options.dataset))
