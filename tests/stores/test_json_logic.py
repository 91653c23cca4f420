"""JSON Logic: what each operator answers, what a rule may not be, and that what one costs is bounded."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from engines.errors import Invalid, TooLarge
from engines.stores.json_logic import (
    RULE_DEPTH_MAX,
    RULE_PARTS_MAX,
    Compiler,
)
from engines.stores.json_operators import MERGED_ITEMS_MAX, OPERATORS, PATH_CHARS_MAX
from engines.stores.json_values import NUMBER_CHARS_MAX, STEPS_MAX, TEXT_CHARS_MAX, Run

DATA = {
    "name": "Ada",
    "age": 36,
    "empty": "",
    "nothing": None,
    "zero": 0,
    "user": {"plan": "pro", "tags": ["a", "b"]},
    "numbers": [1, 2, 3, 4],
    "people": [{"name": "Ada", "age": 36}, {"name": "Bob", "age": 12}],
}


def compiled(rule: Any, named: dict[str, Any] | None = None) -> Any:
    return Compiler(OPERATORS, named or {}, lambda _name, _field: None).rule(rule, "rule")


def answer(rule: Any, data: Any = DATA, named: dict[str, Any] | None = None) -> Any:
    return compiled(rule, named)(data, Run(data))


# What jsonlogic.com documents and its reference implementation (json-logic-js 2.0.5) answers.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("plain", "plain"),
        ([1, {"var": "age"}], [1, 36]),
        ({"var": "name"}, "Ada"),
        ({"var": ["name"]}, "Ada"),
        ({"var": "user.plan"}, "pro"),
        ({"var": "user.tags.1"}, "b"),
        ({"var": "user.tags.2"}, None),
        ({"var": "user.tags.x"}, None),
        ({"var": "absent"}, None),
        ({"var": ["absent", "d"]}, "d"),
        ({"var": ["absent", {"var": "age"}]}, 36),
        ({"var": ["nothing", "d"]}, None),
        ({"var": ["nothing.more", "d"]}, "d"),
        ({"var": {"cat": ["na", "me"]}}, "Ada"),
        ({"var": ""}, DATA),
        ({"var": []}, DATA),
        ({"missing": ["name", "absent", "empty", "nothing", "zero"]}, ["absent", "empty", "nothing"]),
        ({"missing": {"merge": ["name", "absent"]}}, ["absent"]),
        ({"missing_some": [1, ["name", "absent"]]}, []),
        ({"missing_some": [2, ["name", "absent", "gone"]]}, ["absent", "gone"]),
        ({"if": [True, "yes", "no"]}, "yes"),
        ({"if": [False, "yes", "no"]}, "no"),
        ({"if": [False, "yes"]}, None),
        ({"if": ["only"]}, "only"),
        ({"if": [False, 1, False, 2, 3]}, 3),
        ({"if": [False, 1, True, 2, 3]}, 2),
        ({"if": [[], "yes", "no"]}, "no"),
        ({"if": ["0", "yes", "no"]}, "yes"),
        ({"if": [0, "yes", "no"]}, "no"),
        ({"if": [{"var": "user"}, "yes", "no"]}, "yes"),
        ({"and": [1, "", 3]}, ""),
        ({"and": [1, 2, 3]}, 3),
        ({"or": [0, "", "x", "y"]}, "x"),
        ({"or": [0, ""]}, ""),
        ({"!": [[]]}, True),
        ({"!": "x"}, False),
        ({"!!": ["0"]}, True),
        ({"!!": [0]}, False),
        ({"==": [1, "1"]}, True),
        ({"==": [1, 1.0]}, True),
        ({"==": [0, False]}, True),
        ({"==": ["", 0]}, True),
        ({"==": [None, 0]}, False),
        ({"==": [None, {"var": "absent"}]}, True),
        ({"==": [[1], "1"]}, True),
        ({"==": [{"var": "numbers"}, {"var": "numbers"}]}, True),
        ({"==": [{"var": "numbers"}, [1, 2, 3, 4]]}, False),
        ({"===": [{"var": "numbers"}, [1, 2, 3, 4]]}, False),
        ({"==": ["a", "b"]}, False),
        ({"!=": [1, "1"]}, False),
        ({"===": [1, "1"]}, False),
        ({"===": [1, 1.0]}, True),
        ({"===": [1, True]}, False),
        ({"===": [None, None]}, True),
        ({"!==": [1, "1"]}, True),
        ({"<": [1, 2]}, True),
        ({"<": [1, 5, 10]}, True),
        ({"<": [1, 11, 10]}, False),
        ({"<": ["b", "a"]}, False),
        ({"<": ["2", 10]}, True),
        ({"<": [None, 1]}, True),
        ({"<": ["x", 1]}, False),
        ({">": ["x", 1]}, False),
        ({"<=": [1, 1, 10]}, True),
        ({">": [2, 1]}, True),
        ({">=": [1, 1]}, True),
        ({"+": [1, "2", 3]}, 6),
        ({"+": "3.14abc"}, 3.14),
        ({"*": [2, "3"]}, 6),
        ({"-": [3, 2]}, 1),
        ({"-": [2]}, -2),
        ({"/": [4, 2]}, 2),
        ({"/": [1, 0]}, math.inf),
        ({"/": [-1, 0]}, -math.inf),
        ({"%": [101, 2]}, 1),
        ({"%": [-5, 3]}, -2),
        ({"max": [1, "3", 2]}, 3),
        ({"min": [1, 3, 0.5]}, 0.5),
        ({"cat": ["I love ", {"var": "name"}, None, 1.0, True]}, "I love Ada1true"),
        ({"cat": [1e21, " ", 1e-7, " ", [1, [2, None]]]}, "1e+21 1e-7 1,2,"),
        ({"substr": ["jsonlogic", 4]}, "logic"),
        ({"substr": ["jsonlogic", -5]}, "logic"),
        ({"substr": ["jsonlogic", 1, 3]}, "son"),
        ({"substr": ["jsonlogic", 4, -2]}, "log"),
        ({"in": ["Spring", "Springfield"]}, True),
        ({"in": ["x", ["y", "x"]]}, True),
        ({"in": ["1", [1]]}, False),
        ({"in": [1, "a1"]}, True),
        ({"in": [None, "null"]}, False),
        ({"in": ["x", None]}, False),
        ({"merge": [[1, 2], 3, [4]]}, [1, 2, 3, 4]),
        ({"map": [{"var": "numbers"}, {"*": [{"var": ""}, 2]}]}, [2, 4, 6, 8]),
        ({"map": [{"var": "name"}, 1]}, []),
        ({"filter": [{"var": "numbers"}, {"%": [{"var": ""}, 2]}]}, [1, 3]),
        ({"all": [{"var": "people"}, {">": [{"var": "age"}, 11]}]}, True),
        ({"all": [[], True]}, False),
        ({"some": [{"var": "people"}, {"==": [{"var": "name"}, "Bob"]}]}, True),
        ({"some": [[], True]}, False),
        ({"none": [{"var": "people"}, {"==": [{"var": "name"}, "Eve"]}]}, True),
        ({"none": [None, True]}, True),
        ({"reduce": [{"var": "numbers"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}, 10),
        ({"reduce": [None, 1, "initial"]}, "initial"),
        ({"$ref": "adult"}, True),
        ({"if": [{"!": {"$ref": "adult"}}, 1, 2]}, 2),
    ],
)
def test_an_operator_answers_as_the_reference_does(rule: Any, expected: Any) -> None:
    found = answer(rule, named={"adult": {">=": [{"var": "age"}, 18]}})
    assert found == expected
    assert type(found) is bool or type(expected) is not bool


def test_what_is_no_number_is_never_equal_and_never_in_order() -> None:
    assert math.isnan(answer({"+": ["x", 1]}))
    assert math.isnan(answer({"%": [1, 0]}))
    assert math.isnan(answer({"/": [0, 0]}))
    assert math.isnan(answer({"max": [1, "x"]}))
    assert answer({"if": [{"+": ["x"]}, "true", "false"]}) == "false"


@pytest.mark.parametrize("written", ["nan", "inf", "infinity", "1_000", "0x10", "١"])
def test_only_what_javascript_calls_a_number_is_one(written: str) -> None:
    assert answer({"==": [written, {"var": "age"}]}) is False
    assert math.isnan(answer({"-": [written]}))


def test_conditions_evaluate_no_more_than_they_need() -> None:
    bomb = {"map": [{"var": "many"}, 1]}
    data = {"many": [0] * (STEPS_MAX + 1)}
    with pytest.raises(TooLarge):
        answer(bomb, data)
    assert answer({"if": [True, 1, bomb]}, data) == 1
    assert answer({"or": [1, bomb]}, data) == 1
    assert answer({"and": [0, bomb]}, data) == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("rule", "field"),
        [
            ({}, "rule"),
            ({"if": [True, {}]}, "rule.if[1]"),
            ({"a": 1, "b": 2}, "rule"),
            ({"log": 1}, "rule"),
            ({"and": [{"?:": [1]}]}, "rule.and[0]"),
            ({"==": [1]}, "rule.=="),
            ({"<": [1, 2, 3, 4]}, "rule.<"),
            ({"if": []}, "rule.if"),
            ({"var": ["a", 1, 2]}, "rule.var"),
            ({"substr": ["a"]}, "rule.substr"),
            ({"reduce": [[], 1]}, "rule.reduce"),
            ({"map": [[], {"nope": 1}]}, "rule.map[1]"),
            ({"!": [{"$ref": "absent"}]}, "rule.![0].$ref"),
            ({"$ref": ["a"]}, "rule.$ref"),
        ],
    )
    def test_a_broken_rule_is_refused_where_it_breaks(self, rule: Any, field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            compiled(rule)
        assert refusal.value.field == field

    def test_named_rules_may_refer_to_each_other_but_in_no_circle(self) -> None:
        named = {"a": {"!": {"$ref": "b"}}, "b": {"!": {"$ref": "c"}}, "c": {"var": "age"}}
        assert answer({"$ref": "a"}, named=named) is True
        for circle in ({"c": {"$ref": "a"}}, {"b": {"$ref": "b"}}):
            with pytest.raises(Invalid, match="circle") as refusal:
                compiled({"$ref": "a"}, named | circle)
            assert str(refusal.value.field).startswith("$evaluators.")

    def test_operators_are_those_of_flagds_schema(self) -> None:
        # flagd-schemas 0.2, json/targeting.yaml, without flagd's own four.
        names = (
            "var missing missing_some if == === != !== > >= % / map filter all none some in < <= substr"
            " reduce * ! !! or and + - max min merge cat"
        )
        assert set(OPERATORS) == set(names.split(" "))


class TestBounds:
    def nested(self, levels: int) -> Any:
        rule: Any = True
        for _ in range(levels - 1):
            rule = {"!": [rule]}
        return rule

    def test_depth(self) -> None:
        compiled(self.nested(RULE_DEPTH_MAX))
        with pytest.raises(TooLarge, match=str(RULE_DEPTH_MAX)):
            compiled(self.nested(RULE_DEPTH_MAX + 1))

    def test_parts(self) -> None:
        compiled({"and": [1] * (RULE_PARTS_MAX - 1)})
        with pytest.raises(TooLarge, match=f"{RULE_PARTS_MAX:,}"):
            compiled({"and": [1] * RULE_PARTS_MAX})

    def test_named_rules_count_wherever_they_are_put_in(self) -> None:
        named: dict[str, Any] = {"r0": {"var": "a"}}
        for level in range(1, 12):
            named[f"r{level}"] = {"and": [{"$ref": f"r{level - 1}"}, {"$ref": f"r{level - 1}"}]}
        compiled({"$ref": "r5"}, named)
        with pytest.raises(TooLarge):
            compiled({"$ref": "r11"}, named)

    def test_steps_over_lists(self) -> None:
        items = list(range(100))
        nested = {"map": [{"var": "items"}, {"+": [{"var": ""}, 1]}]}
        assert len(answer(nested, {"items": items})) == 100
        squared = {"map": [{"var": "items"}, {"map": [{"var": "inner"}, {"var": ""}]}]}
        with pytest.raises(TooLarge, match=f"{STEPS_MAX:,}"):
            answer(squared, {"items": [{"inner": items}] * 100})
        for rule in (
            {"in": [1, {"var": "many"}]},
            {"cat": [{"var": "many"}]},
            {"==": [{"var": "many"}, "x"]},
        ):
            with pytest.raises(TooLarge):
                answer(rule, {"many": [0] * (STEPS_MAX + 1)})

    def test_steps_over_long_texts(self) -> None:
        """A rule may hold a long text, and do something with it for each item of a long list."""
        long, items = "x" * 200_000, list(range(1_000))
        for part in ({"in": ["y", long]}, {"substr": [long, 5]}):
            assert answer({"map": [[1], part]})
            with pytest.raises(TooLarge, match=f"{STEPS_MAX:,}"):
                answer({"map": [{"var": "items"}, part]}, {"items": items})

    def test_steps_over_names_that_are_taken_apart(self) -> None:
        """One for each further part of a name that a rule makes; of one that is written down, none."""
        items = list(range(500))
        for path in ("a" + ".a" * 255, "a" + ".a" * 20):
            made = {"var": [{"cat": [path, ""]}]}
            assert answer({"map": [[1], made]}) == [None]
            with pytest.raises(TooLarge, match=f"{STEPS_MAX:,}"):
                answer({"map": [{"var": "items"}, made]}, {"items": items})
            assert answer({"map": [{"var": "items"}, {"var": path}]}, {"items": items}) == [None] * 500
            with pytest.raises(TooLarge, match=f"{STEPS_MAX:,}"):
                answer({"missing": {"var": "items"}}, {"items": [path] * 500})
        assert answer({"missing": {"var": "items"}}, {"items": ["plain"] * 5_000}) == ["plain"] * 5_000

    def test_a_text_that_is_almost_a_number_is_read_once(self) -> None:
        """In milliseconds. Tried at every length it takes seconds, so the figure need not be tight."""
        same = {"if": [{"==": [{"var": "accumulator"}, 1]}, 1, {"var": "accumulator"}]}
        rule = {"reduce": [{"var": "items"}, same, {"var": "text"}]}
        text = "9" * (NUMBER_CHARS_MAX - 1) + "x"
        began = time.perf_counter()
        assert answer(rule, {"items": [0] * 1_600, "text": text}) == text
        assert time.perf_counter() - began < 1.0

    def test_a_name_past_its_length_leads_nowhere(self) -> None:
        data: dict[str, Any] = {"a": 1}
        for _ in range(PATH_CHARS_MAX // 2):
            data = {"a": data}
        path = "a." * (PATH_CHARS_MAX // 2)
        assert answer({"var": path[:-1]}, data) == {"a": 1}
        assert answer({"var": f"{path}a"}, data) is None
        assert answer({"var": {"cat": [path, "a"]}}, data) is None

    def test_text_that_grows(self) -> None:
        doubled = {"cat": [{"var": "accumulator"}, {"var": "accumulator"}]}
        with pytest.raises(TooLarge, match=f"{TEXT_CHARS_MAX:,}"):
            answer({"reduce": [{"var": "items"}, doubled, "x"]}, {"items": [0] * 64})

    def test_lists_that_grow(self) -> None:
        doubled = {"merge": [{"var": "accumulator"}, {"var": "accumulator"}]}
        with pytest.raises(TooLarge, match=f"{MERGED_ITEMS_MAX:,}"):
            answer({"reduce": [{"var": "items"}, doubled, [1]]}, {"items": [0] * 64})

    def test_numbers_that_grow_become_infinite(self) -> None:
        squared = {"*": [{"var": "accumulator"}, {"var": "accumulator"}]}
        assert answer({"reduce": [{"var": "items"}, squared, 10]}, {"items": [0] * 64}) == math.inf
