"""JSON Logic: a rule as JSON, checked and compiled once into closures.

Owns the form of a rule, its bounds and its named parts (`$ref`). Leaves operators to
`stores/json_operators.py` and whoever hands in more, conversions to `stores/json_values.py`, and the meaning
of a result to its caller. A rule does no I/O, changes nothing and ends: what it may cost is bounded where it
is compiled and, over lists of the data, by the steps of a `Run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engines.errors import Invalid, TooLarge
from engines.stores.json_values import Run

# Of one rule, its named parts put in where they are referred to.
RULE_PARTS_MAX: Final = 1_000
RULE_DEPTH_MAX: Final = 32

Rule = Callable[[Any, Run], Any]
Build = Callable[["Compiler", Sequence[Any], str], Rule]

_REF: Final = "$ref"


class Compiler:
    """Compiles the rules of one definition. `named` are the rules that `$ref` puts in.

    Each of `operators` is given its arguments as they stand. `check_name` is shown each variable's name, with
    the field where it stands, and may refuse it.
    """

    def __init__(
        self,
        operators: Mapping[str, Build],
        named: Mapping[str, Any],
        check_name: Callable[[str, str], None],
    ) -> None:
        self._operators = operators
        self._named = named
        self._within: list[str] = []
        self._depth = 0
        self._parts = 0
        self.check_name = check_name

    @property
    def parts(self) -> int:
        """How many parts were compiled so far."""
        return self._parts

    def rule(self, source: Any, field: str) -> Rule:
        """What `source` means. Raises Invalid, naming the part, and TooLarge for a rule past its bounds."""
        self._parts += 1
        self._depth += 1
        if self._parts > RULE_PARTS_MAX:
            raise TooLarge(f"a rule has at most {RULE_PARTS_MAX:,} parts", field=field)
        if self._depth > RULE_DEPTH_MAX:
            raise TooLarge(f"a rule is nested at most {RULE_DEPTH_MAX} levels deep", field=field)
        compiled = self._part(source, field)
        self._depth -= 1
        return compiled

    def rules(self, sources: Sequence[Any], field: str) -> list[Rule]:
        return [self.rule(source, f"{field}[{index}]") for index, source in enumerate(sources)]

    def _part(self, source: Any, field: str) -> Rule:
        if type(source) is list:
            items = self.rules(source, field)
            if not is_literal(source):
                return lambda data, run: [item(data, run) for item in items]
        if type(source) is not dict:
            return lambda _data, _run: source
        if len(source) != 1:
            raise Invalid("a rule is an object with one member, its operator", field=field)
        ((name, arguments),) = source.items()
        if name == _REF:
            return self._referred(arguments, field)
        build = self._operators.get(name)
        if build is None:
            raise Invalid(f"there is no operator {name[:32]!r}", field=field)
        return build(self, arguments if type(arguments) is list else [arguments], f"{field}.{name}")

    def _referred(self, name: Any, field: str) -> Rule:
        if type(name) is not str or name not in self._named:
            raise Invalid("$ref names no rule of $evaluators", field=f"{field}.{_REF}")
        if name in self._within:
            circle = " -> ".join((*self._within[self._within.index(name) :], name))
            raise Invalid(
                f"the rules refer to each other in a circle: {circle[:200]}", field=f"{field}.{_REF}"
            )
        self._within.append(name)
        compiled = self.rule(self._named[name], f"$evaluators.{name}")
        self._within.pop()
        return compiled


def is_literal(source: Any) -> bool:
    """Whether it is the same in every evaluation. No operator changes what it is given."""
    return type(source) is not dict and (type(source) is not list or all(map(is_literal, source)))


def check_count(arguments: Sequence[Any], least: int, most: int | None, field: str) -> None:
    """Raises Invalid for an operator with too few or too many arguments."""
    if len(arguments) < least or (most is not None and len(arguments) > most):
        bounds = (
            f"at least {least}" if most is None else str(least) if most == least else f"{least} to {most}"
        )
        raise Invalid(f"this operator has {bounds} arguments", field=field)


def eager(function: Callable[..., Any], least: int, most: int | None) -> Build:
    """An operator that is given the run, and what its arguments came to."""

    def build(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
        check_count(arguments, least, most, field)
        rules = compiler.rules(arguments, field)
        if len(rules) == 1:
            (only,) = rules
            return lambda data, run: function(run, only(data, run))
        if len(rules) == 2:
            first, second = rules
            if is_literal(arguments[1]):
                literal = arguments[1]
                return lambda data, run: function(run, first(data, run), literal)
            return lambda data, run: function(run, first(data, run), second(data, run))
        return lambda data, run: function(run, *[rule(data, run) for rule in rules])

    return build
