"""What changed between two values: exact, bounded, and never in everybody's way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines.codec import encode_json
from engines.stores.json_diff import CHANGES_BYTES_MAX, Difference, differences

# About as long as a body may be.
MANY = 100_000


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, []),
        ({"a": 1}, {"a": 2}, [("replace", "/a", 1, 2)]),
        ({"a": 1}, {"b": 1}, [("remove", "/a", 1, None), ("add", "/b", None, 1)]),
        ({"a": [1, 2]}, {"a": [0, 2, 3]}, [("replace", "/a/0", 1, 0), ("add", "/a/2", None, 3)]),
        ({"a": [1, [2]]}, {"a": [1]}, [("remove", "/a/1", [2], None)]),
        ({"a": {"~/": 1}}, {"a": {"~/": True}}, [("replace", "/a/~0~1", 1, True)]),
        ({"a": []}, {"a": {}}, [("replace", "/a", [], {})]),
        ({"b": {"z": 1, "y": 1}, "a": 1}, {"b": {"z": 2, "y": 2}, "a": 1},
         [("replace", "/b/y", 1, 2), ("replace", "/b/z", 1, 2)]),
        (None, {"a": 1}, [("replace", "", None, {"a": 1})]),
    ],
)  # fmt: skip
async def test_each_smallest_value_that_differs_is_a_change(before: Any, after: Any, changes: Any) -> None:
    assert await differences(before, after) == tuple(Difference(*change) for change in changes)


async def test_past_the_bound_the_whole_is_one_change() -> None:
    name = "k" * 30_000
    before, after = {"a": 1, name: [0] * 20_000}, {"a": 1, name: [1] * 20_000}
    changes = await differences(before, after)
    assert changes == (Difference("replace", "", before, after),)
    assert len(encode_json(changes)) < CHANGES_BYTES_MAX


async def test_up_to_the_bound_a_long_name_is_told_of_each_change() -> None:
    name = "k" * 30_000
    changes = await differences({name: [0] * 30}, {name: [1] * 30})
    assert [change.path for change in changes] == [f"/{name}/{index}" for index in range(30)]


@pytest.mark.parametrize("value", [0, [], {}], ids=["number", "list", "object"])
async def test_others_go_on_meanwhile(value: Any) -> None:
    turns = 0
    comparison = asyncio.ensure_future(differences({"a": [value] * MANY}, {"a": [value] * MANY}))
    while not comparison.done():
        turns += 1
        await asyncio.sleep(0)
    assert await comparison == ()
    assert turns > MANY / 1_000
