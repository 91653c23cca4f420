"""Flags: what flagd's testbed says they answer, what a definition may not say, and what it costs."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from engines.errors import EnginesError, Invalid, TooLarge
from engines.stores.flag_operators import WEIGHTS_SUM_MAX, bucket_of
from engines.stores.flag_rules import (
    NAME_CHARS_MAX,
    NUMBER_MAX,
    VARIANTS_MAX,
    Allowance,
    Evaluation,
    Flag,
    FlagDefinition,
    check_context,
)
from engines.stores.flags import BULK_STEPS_MAX, FLAGS_MAX
from engines.stores.json_logic import RULE_PARTS_MAX
from engines.stores.json_values import STEPS_MAX
from tests.stores.flag_samples import NOW_S, definition, evaluated, texts, variant_of

SUITS = ("clubs", "diamonds", "hearts", "spades")
QUARTERS = [[suit, 25] for suit in SUITS]


class TestReasons:
    """flagd, "Flag Definitions", and open-feature/flagd-testbed 3.9.0, evaluator/gherkin."""

    @pytest.mark.parametrize(
        ("variants", "expected"),
        [
            ({"zero": False, "other": True}, False),
            ({"zero": "", "other": "hi"}, ""),
            ({"zero": 0, "other": 1}, 0),
            ({"zero": 0.5, "other": 1}, 0.5),
            ({"zero": {}, "other": {"a": [1]}}, {}),
        ],
    )
    def test_a_flag_without_targeting_is_static(self, variants: dict[str, Any], expected: Any) -> None:
        found = evaluated(variants=variants, defaultVariant="zero")
        assert (found.reason, found.variant, found.value) == ("STATIC", "zero", expected)
        assert type(found.value) is type(expected)

    def test_a_disabled_flag_leaves_the_value_to_the_program(self) -> None:
        found = evaluated(state="DISABLED", targeting={"if": [True, "on"]})
        assert (found.reason, found.variant, found.value) == ("DISABLED", UNSET, UNSET)

    @pytest.mark.parametrize("none", [{}, {"defaultVariant": None}])
    @pytest.mark.parametrize("targeting", [{}, {"if": [False, "on"]}])
    def test_so_does_one_without_a_default_variant(self, none: Any, targeting: Any) -> None:
        plain = {"state": "ENABLED", "variants": {"on": True}, "targeting": targeting}
        found = Flag("flag", msgspec.convert(plain | none, FlagDefinition)).evaluate({}, NOW_S)
        assert (found.reason, found.variant, found.value) == ("DEFAULT", UNSET, UNSET)

    def test_targeting_that_matches_and_targeting_that_does_not(self) -> None:
        targeting = {"if": [{"==": [{"var": "targetingKey"}, "ada"]}, "on", None]}
        hit = evaluated({"targetingKey": "ada"}, targeting=targeting)
        assert (hit.reason, hit.variant, hit.value) == ("TARGETING_MATCH", "on", True)
        miss = evaluated({"targetingKey": "bob"}, targeting=targeting)
        assert (miss.reason, miss.variant, miss.value) == ("DEFAULT", "off", False)

    def test_targeting_to_the_default_variant_is_a_match(self) -> None:
        found = evaluated(targeting={"if": [True, "off"]})
        assert (found.reason, found.value) == ("TARGETING_MATCH", False)

    def test_true_and_false_name_their_variants(self) -> None:
        rule = {"==": [{"var": "a"}, 1]}
        assert variant_of(rule, {"a": 1}, "true", "false") == "true"
        assert variant_of(rule, {"a": 2}, "true", "false") == "false"

    @pytest.mark.parametrize("result", ["gone", 1, ["on"], {"var": ""}, {"==": [1, 1]}])
    def test_what_names_no_variant_is_an_error(self, result: Any) -> None:
        found = evaluated(targeting={"if": [True, result]})
        assert (found.reason, found.error_code, found.value) == ("ERROR", "GENERAL", UNSET)

    def test_the_key_and_the_time_are_in_the_context_and_nobody_can_forge_them(self) -> None:
        forged = {"$flagd": {"flagKey": "forged", "timestamp": 0}}
        assert variant_of({"var": "$flagd.flagKey"}, forged, "mine", key="mine") == "mine"
        rule = {"if": [{"===": [{"var": "$flagd.timestamp"}, int(NOW_S)]}, "now"]}
        assert variant_of(rule, forged, "now") == "now"

    def test_metadata_comes_with_every_answer_but_an_error(self) -> None:
        metadata = {"string": "1.0.2", "integer": 2, "float": 0.1, "boolean": True}
        for members in ({}, {"state": "DISABLED"}, {"targeting": {"if": [True, "on"]}}):
            assert evaluated(metadata=metadata, **members).metadata == metadata
        assert evaluated().metadata == {}

    def test_what_is_handed_out_is_the_callers_to_change(self) -> None:
        flag = Flag("f", definition(variants={"o": {"list": [1]}}, defaultVariant="o", metadata={"a": 1}))
        first = flag.evaluate({}, NOW_S)
        first.value["list"].append(2)
        first.metadata["a"] = 2
        second = flag.evaluate({}, NOW_S)
        assert (second.value, second.metadata) == ({"list": [1]}, {"a": 1})

    def test_the_callers_context_is_left_as_it_was(self) -> None:
        context = {"a": 1}
        evaluated(context, targeting={"if": [{"var": "a"}, "on"]})
        assert context == {"a": 1}

    def test_named_rules(self) -> None:
        members: dict[str, Any] = {
            "$evaluators": {"is_ballmer": {"==": ["ballmer@macrosoft.com", {"var": ["email"]}]}}
        }
        rule = {"if": [{"$ref": "is_ballmer"}, "hi", "bye"]}
        assert variant_of(rule, {"email": "ballmer@macrosoft.com"}, "hi", "bye", **members) == "hi"
        assert variant_of(rule, {"email": "user@example.com"}, "hi", "bye", **members) == "bye"


class TestFractional:
    """Vectors of flagd-testbed 3.9.0, evaluator/gherkin/fractional.feature, tag fractional-v2."""

    # MurmurHash3_x86_32, seed 0: published values, and hashes at the ends of the range.
    @pytest.mark.parametrize(
        ("value", "digest"),
        [
            ("", 0),
            ("hello", 0x248BFA47),
            ("hello, world", 0x149BBB7F),
            ("The quick brown fox jumps over the lazy dog", 0x2E4FF723),
        ],
    )
    def test_the_hash_is_murmur3(self, value: str, digest: int) -> None:
        assert bucket_of(value, WEIGHTS_SUM_MAX) == digest * WEIGHTS_SUM_MAX >> 32
        assert bucket_of(value, 1) == 0

    @pytest.mark.parametrize(
        ("name", "suit"),
        [
            ("jack", "hearts"),
            ("queen", "spades"),
            ("ten", "clubs"),
            ("nine", "diamonds"),
            (3, "clubs"),
        ],
    )
    def test_a_bucketing_rule(self, name: Any, suit: str) -> None:
        rule = {"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]}, *QUARTERS]}
        assert variant_of(rule, {"user": {"name": name}}, *SUITS, key="fractional-flag") == suit

    @pytest.mark.parametrize("key", ["fractional-flag-A-shared-seed", "fractional-flag-B-shared-seed"])
    @pytest.mark.parametrize(
        ("name", "suit"),
        [("seven", "hearts"), ("eight", "diamonds"), ("nine", "clubs"), ("two", "spades")],
    )
    def test_a_shared_seed_puts_a_user_into_one_bucket_of_both_flags(
        self, key: str, name: str, suit: str
    ) -> None:
        rule = {"fractional": [{"cat": ["shared-seed", {"var": "user.name"}]}, *QUARTERS]}
        assert variant_of(rule, {"user": {"name": name}}, *SUITS, key=key) == suit

    @pytest.mark.parametrize(
        ("targeting_key", "side"), [("jon@company.com", "heads"), ("jane@company.com", "tails")]
    )
    def test_without_a_rule_the_flags_key_and_the_targeting_key_decide(
        self, targeting_key: str, side: str
    ) -> None:
        rule = {"fractional": [["heads"], ["tails", 1]]}
        context = {"targetingKey": targeting_key}
        assert variant_of(rule, context, "heads", "tails", key="fractional-flag-shorthand") == side

    @pytest.mark.parametrize(
        ("key", "half"),
        [
            ("ejOoVL", "lower"),
            ("bY9fO-", "lower"),
            ("SI7p-", "lower"),
            ("6LvT0", "upper"),
            ("ceQdGm", "upper"),
        ],
    )
    def test_hashes_at_the_ends_of_the_range(self, key: str, half: str) -> None:
        rule = {"fractional": [{"var": "targetingKey"}, ["lower", 50], ["upper", 50]]}
        assert variant_of(rule, {"targetingKey": key}, "lower", "upper") == half

    @pytest.mark.parametrize(
        ("targeting_key", "tier", "expected"),
        [
            ("jon@company.com", "premium", "premium"),
            ("jon@company.com", "basic", "standard"),
            ("user1", "premium", "standard"),
            ("user1", "basic", "standard"),
        ],
    )
    def test_a_variant_may_be_a_rule(self, targeting_key: str, tier: str, expected: str) -> None:
        tiered = {"if": [{"==": [{"var": "tier"}, "premium"]}, "premium", "standard"]}
        rule = {"fractional": [{"var": "targetingKey"}, [tiered, 50], ["standard", 50]]}
        context = {"targetingKey": targeting_key, "tier": tier}
        assert variant_of(rule, context, "premium", "standard") == expected

    @pytest.mark.parametrize(
        ("targeting_key", "tier", "expected"),
        [
            ("jon@company.com", "premium", "red"),
            ("jon@company.com", "basic", "blue"),
            ("user1", "basic", "blue"),
        ],
    )
    def test_so_may_a_weight(self, targeting_key: str, tier: str, expected: str) -> None:
        weight = {"if": [{"==": [{"var": "tier"}, "premium"]}, 100, 0]}
        rule = {"fractional": [{"var": "targetingKey"}, ["red", weight], ["blue", 10]]}
        context = {"targetingKey": targeting_key, "tier": tier}
        assert variant_of(rule, context, "red", "blue") == expected

    def test_a_split_may_be_a_condition(self) -> None:
        context = {"targetingKey": "some-targeting-key"}
        split = {"fractional": [[False, 0], [True, 100]]}
        assert variant_of({"if": [split, "big", "small"]}, context, "big", "small") == "big"
        split = {"fractional": [[False, 100], [True, 0]]}
        assert variant_of({"if": [split, "big", "small"]}, context, "big", "small") == "small"

    def test_a_negative_weight_that_was_computed_is_none(self) -> None:
        rule = {"fractional": [{"var": "targetingKey"}, ["one", {"-": [0, 50]}], ["two", 100]]}
        assert variant_of(rule, {"targetingKey": "any-user"}, "one", "two") == "two"

        def split(weight: Any) -> list[str]:
            rule = {"fractional": [["one", 100], ["two", weight], ["three", 100]]}
            names = ("one", "two", "three")
            return [variant_of(rule, {"targetingKey": f"user-{number}"}, *names) for number in range(50)]

        assert split({"-": [0, 50]}) == split(0)

    @pytest.mark.parametrize(
        "weight", [{"/": [1, 2]}, {"cat": ["25"]}, {"==": [1, 1]}, {"/": [1, 0]}, {"+": ["x"]}]
    )
    def test_a_computed_weight_that_is_no_whole_number_spoils_the_split(self, weight: Any) -> None:
        rule = {"fractional": [["one", weight], ["two", 1]]}
        assert variant_of(rule, {"targetingKey": "u"}, "one", "two") == "default"

    @pytest.mark.parametrize("context", [{}, {"targetingKey": ""}, {"targetingKey": 7}])
    def test_without_anything_to_go_by_there_is_no_split(self, context: dict[str, Any]) -> None:
        rule = {"fractional": [{"var": "missing_key"}, ["one", 50], ["two", 50]]}
        assert variant_of(rule, context, "one", "two") == "default"

    def test_weights_that_are_all_zero_leave_the_default(self) -> None:
        rule = {"fractional": [["one", 0], ["two", 0]]}
        assert variant_of(rule, {"targetingKey": "u"}, "one", "two") == "default"

    def test_computed_weights_past_their_sum_leave_the_default(self) -> None:
        rule = {"fractional": [["one", {"+": [WEIGHTS_SUM_MAX]}], ["two", 1]]}
        assert variant_of(rule, {"targetingKey": "u"}, "one", "two") == "default"

    def test_a_rule_that_makes_a_list_makes_a_share(self) -> None:
        # flagd's ADR "Harden Hashing Consistency": then the targeting key decides.
        rule = {"fractional": [{"merge": [{"var": "variant"}, {"var": "weight"}]}, ["two", 0]]}
        context = {"targetingKey": "u", "variant": "one", "weight": 7}
        assert variant_of(rule, context, "one", "two") == "one"
        assert variant_of(rule, context | {"weight": "7"}, "one", "two") == "default"

    def test_shares_come_out_as_their_weights_say_and_stay_as_the_split_widens(self) -> None:
        users = [f"user-{number}" for number in range(4_000)]

        def split(on: int) -> dict[str, str]:
            flag = Flag(
                "rollout",
                definition(targeting={"fractional": [["on", on], ["off", 100 - on]]}),
            )
            return {user: str(flag.evaluate({"targetingKey": user}, NOW_S).variant) for user in users}

        narrow, wide = split(10), split(40)
        assert 0.08 < Counter(narrow.values())["on"] / len(users) < 0.12
        assert 0.37 < Counter(wide.values())["on"] / len(users) < 0.43
        assert all(wide[user] == "on" for user in users if narrow[user] == "on")

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ([], "fractional"),
            (["text", ["a", 1]], "fractional[0]"),
            ([["a", 25], ["b", 25.5]], "fractional[1][1]"),
            ([["a", "25"]], "fractional[0][1]"),
            ([["a", -25]], "fractional[0][1]"),
            ([["a", True]], "fractional[0][1]"),
            ([["a", None]], "fractional[0][1]"),
            ([["a", WEIGHTS_SUM_MAX + 1]], "fractional[0][1]"),
            ([["a", WEIGHTS_SUM_MAX], ["b", 1]], "fractional"),
            ([[]], "fractional[0]"),
            ([["a", 1, 2]], "fractional[0]"),
            ([["a", 1], {"var": "x"}], "fractional[1]"),
            ([["a", {"nope": 1}]], "fractional[0][1]"),
        ],
    )
    def test_a_split_that_cannot_be_is_refused(self, arguments: Any, field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            evaluated(targeting={"fractional": arguments})
        assert refusal.value.field == f"targeting.{field}"


class TestVersions:
    """flagd-testbed 3.9.0, evaluator/gherkin/semver.feature; precedence of semver.org, section 11."""

    def compare(self, one: Any, operator: str, other: str) -> str:
        rule = {"sem_ver": [{"var": "version"}, operator, other]}
        return variant_of(rule, {"version": one}, "true", "false")

    @pytest.mark.parametrize(
        ("one", "operator", "other", "expected"),
        [
            ("2.0.0", "=", "2.0.0", "true"),
            ("2.1.0", ">", "2.0.0", "true"),
            ("1.9.0", "<", "2.0.0", "true"),
            ("2.0.0-alpha", "<", "2.0.0", "true"),
            ("2.0.0.0", "=", "2.0.0", "default"),
            ("3.0.1", "~", "3.0.0", "true"),
            ("3.1.0", "~", "3.0.0", "false"),
            ("3.1.0", "^", "3.0.0", "true"),
            ("4.0.0", "^", "3.0.0", "false"),
            ("not-a-version", "=", "1.0.0", "default"),
            ("v1.0.0", "=", "1.0.0", "true"),
            ("V1.0.0", "=", "v1.0.0", "true"),
            ("1.5.0", "^", "1", "true"),
            (1, "^", "1", "true"),
            (1.0, "^", "1", "true"),
            (1.2, ">", "1.1", "true"),
            (1.1, ">", "1.1", "false"),
            (2, ">", "1.1", "true"),
            ("1.0.0+other", "=", "1.0.0+build", "true"),
            ("1.0.0-alpha.1", ">", "1.0.0-alpha", "true"),
            ("1.0.0-alpha.beta", ">", "1.0.0-alpha.1", "true"),
            ("1.0.0-beta.11", ">", "1.0.0-beta.2", "true"),
            ("1.0.0-rc.1", ">=", "1.0.0-beta.11", "true"),
            ("1.10.0", ">", "1.9.0", "true"),
            ("1.0.0", "!=", "1.0.1", "true"),
            ("1.0.0", "<=", "1.0.0", "true"),
            ("01.0.0", "=", "1.0.0", "default"),
            (True, "=", "1.0.0", "default"),
            (None, "=", "1.0.0", "default"),
            ("1." + "0" * 300, "=", "1.0.0", "default"),
            # What semver.org shows with its regular expression, and what a reader may mistake.
            ("1.0.0-0A.is.legal", "<", "1.0.0", "true"),
            ("1.0.0-00a", "<", "1.0.0", "true"),
            ("1.0.0-0-", "<", "1.0.0", "true"),
            ("1.0.0-alpha0.valid", "<", "1.0.0", "true"),
            ("1.2.3----RC-SNAPSHOT.12.9.1--.12+788", "<", "1.2.3", "true"),
            ("1.0.0+0.build.1-rc.10000aaa-kk-0.1", "=", "1.0.0", "true"),
            ("1.0.0-beta+exp.sha.5114f85", "=", "1.0.0-beta", "true"),
            ("1.0.0+001", "=", "1.0.0", "true"),
            ("1.0.0-0", "<", "1.0.0", "true"),
            ("1.0.0-01", "=", "1.0.0", "default"),
            ("1.0.0-a.00", "=", "1.0.0", "default"),
            ("1.0.0-01+b", "=", "1.0.0", "default"),
            ("1.0.0-01.a", "=", "1.0.0", "default"),
            ("1.0.0-alpha..1", "=", "1.0.0", "default"),
            ("1.0.0-", "=", "1.0.0", "default"),
            ("1.0.0+", "=", "1.0.0", "default"),
            ("1.0.0-a.", "=", "1.0.0", "default"),
            ("1.0.0+a+b", "=", "1.0.0", "default"),
            ("1.0.0-a_b", "=", "1.0.0", "default"),
            ("1.0.0\n", "=", "1.0.0", "default"),
        ],
    )
    def test_versions_compare(self, one: Any, operator: str, other: str, expected: str) -> None:
        assert self.compare(one, operator, other) == expected

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ([{"var": "v"}, "="], "sem_ver"),
            ([{"var": "v"}, "===", "1.0.0"], "sem_ver[1]"),
            ([{"var": "v"}, {"var": "op"}, "1.0.0"], "sem_ver[1]"),
            ([{"var": "v"}, "=", "2.0.0.0"], "sem_ver[2]"),
            ([None, "=", "2.0.0"], "sem_ver[0]"),
        ],
    )
    def test_a_comparison_that_cannot_be_is_refused(self, arguments: Any, field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            evaluated(targeting={"sem_ver": arguments})
        assert refusal.value.field == f"targeting.{field}"


class TestTexts:
    """flagd-testbed 3.9.0, evaluator/gherkin/string.feature."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("abcdef", "prefix"), ("uvwxyz", "postfix"), ("abcxyz", "prefix"), ("lmnopq", "none")],
    )
    def test_beginnings_and_ends(self, value: str, expected: str) -> None:
        ends = {"if": [{"ends_with": [{"var": "id"}, "xyz"]}, "postfix", "none"]}
        rule = {"if": [{"starts_with": [{"var": "id"}, "abc"]}, "prefix", ends]}
        assert variant_of(rule, {"id": value}, "prefix", "postfix", "none") == expected

    @pytest.mark.parametrize("operator", ["starts_with", "ends_with"])
    def test_what_is_no_text_answers_nothing(self, operator: str) -> None:
        assert variant_of({operator: [{"var": "num"}, "a"]}, {"num": 123}, "true", "false") == "default"

    @pytest.mark.parametrize("operator", ["starts_with", "ends_with"])
    @pytest.mark.parametrize(("arguments", "at"), [(["abc"], ""), (["a", 1], "[1]"), ([["a"], "b"], "[0]")])
    def test_a_comparison_that_cannot_be_is_refused(self, operator: str, arguments: Any, at: str) -> None:
        with pytest.raises(Invalid) as refusal:
            evaluated(targeting={operator: arguments})
        assert refusal.value.field == f"targeting.{operator}{at}"


class TestDefinitions:
    @pytest.mark.parametrize(
        ("members", "field"),
        [
            ({"variants": {"a": [1], "b": [2]}, "defaultVariant": "a"}, "variants.a"),
            ({"variants": {"a": None}, "defaultVariant": "a"}, "variants.a"),
            ({"variants": {"on": True, "off": "false"}}, "variants.off"),
            ({"variants": {"on": True, "off": 0}}, "variants.off"),
            ({"variants": {"a": 1, "off": {}}}, "variants.off"),
            ({"variants": {"off": NUMBER_MAX + 1}}, "variants.off"),
            ({"variants": {"off": -1e300}}, "variants.off"),
            ({"type": "string"}, "variants.on"),
            ({"defaultVariant": "purple"}, "defaultVariant"),
            ({"targeting": {"if": [{"$ref": "nobody"}, "on"]}}, "targeting.if[0].$ref"),
            ({"targeting": {"==": [{"var": "$flagd.nope"}, 1]}}, "targeting.==[0].var"),
            ({"targeting": {"nope": 1}}, "targeting"),
            ({"targeting": {"if": [True, "on"], "var": "x"}}, "targeting"),
            ({"$evaluators": {"a": {"nope": 1}}}, "$evaluators.a"),
            ({"$evaluators": {"a": "text"}}, "$evaluators.a"),
            ({"$evaluators": {"a": {"!": {"$ref": "a"}}}}, "$evaluators.a.![0].$ref"),
        ],
    )
    def test_what_breaks_a_rule_is_named(self, members: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            Flag("flag", definition(**members))
        assert refusal.value.field == field

    @pytest.mark.parametrize(
        "members",
        [
            {"type": "integer"},
            {"state": "on"},
            {"variants": {}},
            {"variants": {"": True}},
            {"variants": {"x" * (NAME_CHARS_MAX + 1): True}},
            {"variants": {str(number): True for number in range(VARIANTS_MAX + 1)}},
            {"metadata": {"a": {"b": 1}}},
            {"metadata": {"a": None}},
            {"targeting": [1]},
            {"unknown": 1},
        ],
    )
    def test_what_has_another_form_is_no_definition(self, members: dict[str, Any]) -> None:
        with pytest.raises(msgspec.ValidationError):
            definition(**members)

    @pytest.mark.parametrize("type_", ["boolean", "string", "number", "object"])
    def test_the_four_types(self, type_: str) -> None:
        value = {"boolean": True, "string": "s", "number": 1.5, "object": {"a": 1}}[type_]
        members: dict[str, Any] = {"variants": {"a": value}, "defaultVariant": "a"}
        assert evaluated(**members).value == value
        assert evaluated(type=type_, **members).value == value

    def test_a_definition_reads_and_writes_the_names_of_flagds_format(self) -> None:
        told = {
            "type": "boolean",
            "state": "ENABLED",
            "variants": {"on": True},
            "defaultVariant": "on",
            "targeting": {"$ref": "r"},
            "$evaluators": {"r": {"var": "x"}},
            "metadata": {"a": 1},
        }
        assert msgspec.to_builtins(msgspec.convert(told, FlagDefinition)) == told


class TestContexts:
    @pytest.mark.parametrize(
        ("context", "field"), [([], "context"), ({"targetingKey": 1}, "context.targetingKey")]
    )
    def test_what_is_no_context_is_refused(self, context: Any, field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            check_context(context)
        assert refusal.value.field == field

    def test_a_context_may_be_empty(self) -> None:
        check_context({})


class TestCosts:
    def test_a_rule_that_does_too_much_is_an_error_and_no_more(self) -> None:
        rule = {"if": [{"some": [{"var": "many"}, {"==": [{"var": ""}, 1]}]}, "on"]}
        found = evaluated({"many": [0] * STEPS_MAX}, targeting=rule)
        assert (found.reason, found.error_code) == ("ERROR", "GENERAL")
        assert f"{STEPS_MAX:,}" in str(found.error_details)

    def test_a_context_nested_past_the_stack_is_an_error_and_no_more(self) -> None:
        nested: Any = []
        for _ in range(5_000):
            nested = [nested]
        found = evaluated({"deep": nested}, targeting={"cat": [{"var": "deep"}]})
        assert (found.reason, found.error_code) == ("ERROR", "INVALID_CONTEXT")

    def test_the_slowest_rule_that_may_be_stored_ends_soon(self) -> None:
        """In milliseconds. A bound that is broken makes this minutes, so the figure need not be tight."""
        walk = {"some": [{"var": "many"}, {"in": ["x", {"var": "inner"}]}]}
        context = {"many": [{"inner": [0] * 50}] * 2_000, "text": "9" * 100_000}
        rule = {"and": [{"!": [walk]}, *[{"==": [{"var": "text"}, number]} for number in range(300)]]}
        flag = Flag("slow", definition(targeting=rule))
        began = time.perf_counter()
        flag.evaluate(context, NOW_S)
        assert time.perf_counter() - began < 0.5

    def test_a_long_text_that_is_hashed_again_and_again_is_counted(self) -> None:
        split = {"fractional": [{"var": ["nope", "x" * 60_000]}, ["on", 1], ["off", 1]]}
        flag = Flag("slow", definition(targeting={"if": [{"all": [{"var": "many"}, split]}, "on", "off"]}))
        assert flag.evaluate({"many": [1] * 1_900}, NOW_S).reason == "ERROR"
        assert flag.evaluate({"many": [1]}, NOW_S).reason == "TARGETING_MATCH"

    def test_the_parts_of_versions_are_counted(self) -> None:
        compare = {"sem_ver": [{"var": ""}, "=", "1.0.0"]}
        flag = Flag("slow", definition(targeting={"if": [{"none": [{"var": "many"}, compare]}, "on", "off"]}))
        assert flag.evaluate({"many": ["1.2.3"] * 1_900}, NOW_S).reason == "TARGETING_MATCH"
        assert flag.evaluate({"many": ["1.2.3-" + "a." * 100 + "a"] * 90}, NOW_S).reason == "TARGETING_MATCH"
        assert flag.evaluate({"many": ["1.2.3-" + "a." * 100 + "a"] * 100}, NOW_S).reason == "ERROR"

    def test_evaluations_that_share_an_allowance_take_no_more_than_it_has(self) -> None:
        walk = {"if": [{"some": [{"var": "many"}, {"var": ""}]}, "on", "off"]}
        flag, plain, context = (
            Flag("walks", definition(targeting=walk)),
            Flag("f", definition()),
            {"many": [0] * 40},
        )
        allowance = Allowance(100)
        assert [flag.evaluate(context, NOW_S, allowance).reason for _ in range(2)] == ["TARGETING_MATCH"] * 2
        assert allowance.steps_left == 20
        beyond = flag.evaluate(context, NOW_S, allowance)
        assert (beyond.reason, beyond.error_code, allowance.steps_left) == ("ERROR", "GENERAL", 0)
        assert "ask for this one alone" in str(beyond.error_details)
        assert flag.evaluate(context, NOW_S, allowance).reason == "ERROR"
        assert plain.evaluate(context, NOW_S, allowance).reason == "STATIC"
        assert flag.evaluate(context, NOW_S).reason == "TARGETING_MATCH"

    def test_every_flag_of_a_bulk_evaluation_may_walk_the_longest_list_of_a_rule(self) -> None:
        names = [f"user-{number}" for number in range(RULE_PARTS_MAX - 6)]
        flag = Flag("f", definition(targeting={"if": [{"in": [{"var": "targetingKey"}, names]}, "on"]}))
        allowance = Allowance(BULK_STEPS_MAX // FLAGS_MAX)
        assert flag.evaluate({"targetingKey": names[-1]}, NOW_S, allowance).reason == "TARGETING_MATCH"

    def test_too_large_targeting_is_refused_when_it_is_stored(self) -> None:
        with pytest.raises(TooLarge) as refusal:
            Flag("flag", definition(targeting={"and": [1] * 2_000}))
        assert str(refusal.value.field).startswith("targeting")


def test_an_evaluation_shows_what_it_has_and_nothing_else() -> None:
    assert msgspec.to_builtins(evaluated()) == {
        "key": "flag",
        "reason": "STATIC",
        "variant": "off",
        "value": False,
    }
    assert msgspec.to_builtins(evaluated(state="DISABLED")) == {"key": "flag", "reason": "DISABLED"}
    assert isinstance(evaluated(variants=texts("off")), Evaluation)
    assert issubclass(Invalid, EnginesError)
