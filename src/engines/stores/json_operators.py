"""The operators of JSON Logic that flagd's targeting schema admits, in the meaning of jsonlogic.com.

Owns what each makes of its arguments (flagd-schemas, `json/targeting.yaml`; the reference is json-logic-js).
Leaves compiling to `stores/json_logic.py`, conversions to `stores/json_values.py`, and flagd's own operators
to `stores/flag_operators.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engines.errors import TooLarge
from engines.stores.json_logic import Build, Compiler, Rule, check_count, eager
from engines.stores.json_values import (
    Run,
    bounded_text,
    contains,
    is_at_most,
    is_less,
    is_true,
    leading_number,
    loosely_equal,
    number,
    strictly_equal,
    text,
)

MERGED_ITEMS_MAX: Final = 1_000
PATH_CHARS_MAX: Final = 512
_ABSENT: Final = object()


# --- data ---


def find(data: Any, path: Sequence[str]) -> Any:
    """What stands at `path` in the data; the sentinel of `found` where nothing does."""
    for name in path:
        if type(data) is dict or isinstance(data, Mapping):
            data = data.get(name, _ABSENT)
        elif type(data) is list and name.isascii() and name.isdigit() and int(name[:9]) < len(data):
            data = data[int(name[:9])]
        else:
            return _ABSENT
        if data is _ABSENT:
            return _ABSENT
    return data


def _path(name: Any, run: Run) -> Sequence[str]:
    """The names that lead to a variable; none for all the data."""
    named = text(name, run)
    if len(named) > PATH_CHARS_MAX:
        return (named,)  # Nothing is called so; a long name is not worth being taken apart.
    run.spend_dotted(named)
    return named.split(".") if named else ()


def _variable(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    check_count(arguments, 0, 2, field)
    name = arguments[0] if arguments else ""
    default = compiler.rule(arguments[1], f"{field}[1]") if len(arguments) > 1 else None
    if type(name) not in (dict, list):
        path = _path(name, Run(None))
        compiler.check_name(".".join(path), field)
        if len(path) == 1 and default is None:
            return _member(path[0])
        return lambda data, run: _value(find(data, path), default, data, run)
    named = compiler.rule(name, f"{field}[0]")
    return lambda data, run: _value(find(data, _path(named(data, run), run)), default, data, run)


def _member(name: str) -> Rule:
    """The commonest variable: a member of an object."""

    def member(data: Any, run: Run) -> Any:
        if type(data) is dict:
            return data.get(name)
        return _value(find(data, (name,)), None, data, run)

    return member


def _value(found: Any, default: Rule | None, data: Any, run: Run) -> Any:
    if found is not _ABSENT:
        return found
    return None if default is None else default(data, run)


def _is_missing(data: Any, name: Any, run: Run) -> bool:
    found = find(data, _path(name, run))
    return found is _ABSENT or found is None or found == ""


def _missing(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    rules = compiler.rules(arguments, field)

    def missing(data: Any, run: Run) -> list[Any]:
        names = [rule(data, run) for rule in rules]
        names = names[0] if names and type(names[0]) is list else names
        run.spend(len(names))
        return [name for name in names if _is_missing(data, name, run)]

    return missing


def _missing_some(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    check_count(arguments, 2, 2, field)
    least, names = compiler.rules(arguments, field)

    def missing_some(data: Any, run: Run) -> list[Any]:
        wanted = names(data, run)
        wanted = wanted if type(wanted) is list else [wanted]
        run.spend(len(wanted))
        missing = [name for name in wanted if _is_missing(data, name, run)]
        return [] if len(wanted) - len(missing) >= number(least(data, run), run) else missing

    return missing_some


# --- conditions ---


def _if(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    """Conditions and what they lead to in turn, and what holds otherwise; without that, null."""
    check_count(arguments, 1, None, field)
    rules = compiler.rules(arguments, field)
    otherwise = rules.pop() if len(rules) % 2 else None
    pairs = list(zip(rules[::2], rules[1::2], strict=True))

    def choose(data: Any, run: Run) -> Any:
        for condition, result in pairs:
            if is_true(condition(data, run)):
                return result(data, run)
        return None if otherwise is None else otherwise(data, run)

    return choose


def _first(*, true: bool) -> Build:
    """`or` is the first of its arguments that is true, `and` the first that is not; else the last."""

    def build(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
        check_count(arguments, 1, None, field)
        rules = compiler.rules(arguments, field)

        def first(data: Any, run: Run) -> Any:
            result = None
            for rule in rules:
                result = rule(data, run)
                if is_true(result) is true:
                    break
            return result

        return first

    return build


def _less(run: Run, one: Any, other: Any, third: Any = _ABSENT) -> bool:
    return is_less(one, other, run) and (third is _ABSENT or is_less(other, third, run))


def _at_most(run: Run, one: Any, other: Any, third: Any = _ABSENT) -> bool:
    return is_at_most(one, other, run) and (third is _ABSENT or is_at_most(other, third, run))


# --- numbers ---


def _minus(run: Run, one: Any, other: Any = _ABSENT) -> float:
    return -number(one, run) if other is _ABSENT else number(one, run) - number(other, run)


def _divided(run: Run, one: Any, other: Any) -> float:
    dividend, divisor = number(one, run), number(other, run)
    if divisor:
        return dividend / divisor
    sign = math.copysign(1, dividend) * math.copysign(1, divisor)
    return math.nan if dividend == 0 or dividend != dividend else math.inf * sign


def _remainder(run: Run, one: Any, other: Any) -> float:
    dividend, divisor = number(one, run), number(other, run)
    if divisor == 0 or math.isinf(dividend):
        return math.nan
    return math.fmod(dividend, divisor)


def _extreme(choose: Callable[[list[float]], float]) -> Callable[..., float]:
    def extreme(run: Run, *values: Any) -> float:
        numbers = [number(value, run) for value in values]
        return math.nan if any(value != value for value in numbers) else choose(numbers)

    return extreme


# --- text and lists ---


def _cat(run: Run, *values: Any) -> str:
    return bounded_text("".join([text(value, run) for value in values]))


def _substr(run: Run, value: Any, start: Any, length: Any = _ABSENT) -> str:
    """From `start`, or so far before the end where it is negative; a negative length leaves so much off."""
    source = text(value, run)
    run.spend_text(source)
    begin = _index(start, run)
    rest = source[begin:] if begin >= 0 else source[max(0, len(source) + begin) :]
    if length is _ABSENT:
        return rest
    count = _index(length, run)
    return rest[:count] if count >= 0 else rest[: max(0, len(rest) + count)]


def _index(value: Any, run: Run) -> int:
    position = number(value, run)
    return int(max(-1e9, min(1e9, position))) if position == position else 0


def _merge(_run: Run, *values: Any) -> list[Any]:
    merged: list[Any] = []
    for value in values:
        merged += value if type(value) is list else [value]
        if len(merged) > MERGED_ITEMS_MAX:
            raise TooLarge(f"a rule merges lists into at most {MERGED_ITEMS_MAX:,} items")
    return merged


def _over_items(collect: Callable[[list[Any], Callable[[Any], Any]], Any]) -> Build:
    """An operator over a list: what `collect` makes of the items and of the rule that is applied to each."""

    def build(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
        check_count(arguments, 2, 2, field)
        items_of = compiler.rule(arguments[0], f"{field}[0]")
        before = compiler.parts
        of_item = compiler.rule(arguments[1], f"{field}[1]")
        parts = compiler.parts - before

        def over_items(data: Any, run: Run) -> Any:
            items = items_of(data, run)
            items = items if type(items) is list else []
            run.spend(len(items) * parts)
            return collect(items, lambda item: of_item(item, run))

        return over_items

    return build


def _reduce(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    check_count(arguments, 3, 3, field)
    items_of = compiler.rule(arguments[0], f"{field}[0]")
    before = compiler.parts
    combine = compiler.rule(arguments[1], f"{field}[1]")
    parts = compiler.parts - before
    initial = compiler.rule(arguments[2], f"{field}[2]")

    def reduce(data: Any, run: Run) -> Any:
        items = items_of(data, run)
        result = initial(data, run)
        if type(items) is list:
            run.spend(len(items) * parts)
            for item in items:
                result = combine({"current": item, "accumulator": result}, run)
        return result

    return reduce


OPERATORS: Final[Mapping[str, Build]] = {
    "var": _variable,
    "missing": _missing,
    "missing_some": _missing_some,
    "if": _if,
    "and": _first(true=False),
    "or": _first(true=True),
    "!": eager(lambda _run, value: not is_true(value), 1, 1),
    "!!": eager(lambda _run, value: is_true(value), 1, 1),
    "==": eager(loosely_equal, 2, 2),
    "!=": eager(lambda run, one, other: not loosely_equal(run, one, other), 2, 2),
    "===": eager(lambda _run, one, other: strictly_equal(one, other), 2, 2),
    "!==": eager(lambda _run, one, other: not strictly_equal(one, other), 2, 2),
    "<": eager(_less, 2, 3),
    "<=": eager(_at_most, 2, 3),
    ">": eager(lambda run, one, other: is_less(other, one, run), 2, 2),
    ">=": eager(lambda run, one, other: is_at_most(other, one, run), 2, 2),
    "+": eager(lambda run, *values: sum(leading_number(value, run) for value in values), 1, None),
    "*": eager(lambda run, *values: math.prod(leading_number(value, run) for value in values), 2, None),
    "-": eager(_minus, 1, 2),
    "/": eager(_divided, 2, 2),
    "%": eager(_remainder, 2, 2),
    "max": eager(_extreme(max), 1, None),
    "min": eager(_extreme(min), 1, None),
    "cat": eager(_cat, 1, None),
    "substr": eager(_substr, 2, 3),
    "in": eager(contains, 2, 2),
    "merge": eager(_merge, 1, None),
    "map": _over_items(lambda items, of: [of(item) for item in items]),
    "filter": _over_items(lambda items, of: [item for item in items if is_true(of(item))]),
    "all": _over_items(lambda items, of: bool(items) and all(is_true(of(item)) for item in items)),
    "some": _over_items(lambda items, of: any(is_true(of(item)) for item in items)),
    "none": _over_items(lambda items, of: not any(is_true(of(item)) for item in items)),
    "reduce": _reduce,
}
