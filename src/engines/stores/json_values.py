"""Values as JSON Logic compares and converts them: the rules of JavaScript, on decoded JSON.

Owns truth, numbers, text, equality and order. Leaves operators to `stores/json_operators.py`. The source of
every rule is the reference implementation that jsonlogic.com documents, which is JavaScript and leaves
conversions to its language. Numbers that come of arithmetic are floats, so no rule can make one grow without
end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from engines.errors import TooLarge

# An expanded rule has so many parts, and a list that is walked costs one step an item and part. A step takes
# about 0.1 µs: the slowest rule that may be stored takes a few milliseconds.
STEPS_MAX: Final = 10_000
TEXT_CHARS_MAX: Final = 8_192
NUMBER_CHARS_MAX: Final = 400
# So many characters are searched or copied in about the time of a step.
_CHARS_A_STEP: Final = 256

# Digits are never given back: what is almost a number would be tried at every length.
_NUMBER: Final = re.compile(r"[+-]?(?:Infinity|(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?)")
_WHOLE_TEXT_BELOW: Final = 1e21
_NAN: Final = math.nan


class Run:
    """One evaluation: the data that its rule began with, and how many steps it has left.

    `steps_max`: fewer than `STEPS_MAX` where it is one of many that share what there is.
    """

    __slots__ = ("root", "steps_left", "steps_max")

    def __init__(self, root: Any, *, steps_max: int = STEPS_MAX) -> None:
        self.root = root
        self.steps_max = steps_max
        self.steps_left = steps_max

    def spend_text(self, source: str) -> None:
        """The same for work that grows with a text."""
        self.spend(len(source) // _CHARS_A_STEP)

    def spend_dotted(self, source: str) -> None:
        """The same for a text that is taken apart at its points, where each part costs about a step."""
        self.spend(source.count(".") + len(source) // _CHARS_A_STEP)

    def spend(self, steps: int) -> None:
        """Raises TooLarge for more work than one evaluation may do."""
        self.steps_left -= steps
        if self.steps_left >= 0:
            return
        if self.steps_max < STEPS_MAX:
            raise TooLarge("the flags of one request together take too many steps; ask for this one alone")
        raise TooLarge(f"one evaluation takes at most {STEPS_MAX:,} steps over lists and long texts")


def is_true(value: Any) -> bool:
    """Truth: false, null, 0, NaN, the empty text and the empty list are false; an empty object is true."""
    if value is True or value is False:
        return value
    kind = type(value)
    if kind is str or kind is list:
        return len(value) > 0
    if kind is int or kind is float:
        return not (value == 0 or value != value)
    return value is not None


def number(value: Any, run: Run) -> float:
    """The number that a value stands for; NaN where it stands for none."""
    kind = type(value)
    if kind is int or kind is float or kind is bool:
        return _float(value)
    if value is None:
        return 0.0
    if kind is list:
        value = text(value, run)
    elif kind is not str:
        return _NAN
    stripped = value.strip() if len(value) <= NUMBER_CHARS_MAX else "too long to be one"
    if not stripped:
        return 0.0
    return float(stripped) if _NUMBER.fullmatch(stripped) else _NAN


def leading_number(value: Any, run: Run) -> float:
    """The number that a value's text begins with, as addition and multiplication take their arguments."""
    kind = type(value)
    if kind is int or kind is float:
        return _float(value)
    if kind is list:
        value = text(value, run)
    elif kind is not str:
        return _NAN
    match = _NUMBER.match(value[:NUMBER_CHARS_MAX].lstrip())
    return _NAN if match is None else float(match[0])


def text(value: Any, run: Run) -> str:
    """The text that a value turns into where text is asked for; null is empty."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return _number_text(value)
    if value is None:
        return ""
    if kind is list:
        run.spend(len(value))
        return bounded_text(",".join([text(item, run) for item in value]))
    return "[object Object]"


def bounded_text(made: str) -> str:
    """Raises TooLarge for text that a rule made longer than it may."""
    if len(made) > TEXT_CHARS_MAX:
        raise TooLarge(f"a rule makes texts of at most {TEXT_CHARS_MAX:,} characters")
    return made


def loosely_equal(run: Run, one: Any, other: Any) -> bool:
    """`==`: equal after conversion. Null equals null alone, and a list or object no other but itself."""
    if one is None or other is None:
        return one is other
    if type(one) is str and type(other) is str:
        return bool(one == other)
    one_is_container, other_is_container = _is_container(one), _is_container(other)
    if one_is_container and other_is_container:
        return one is other
    if one_is_container:
        return loosely_equal(run, text(one, run), other)
    if other_is_container:
        return loosely_equal(run, one, text(other, run))
    return number(one, run) == number(other, run)


def strictly_equal(one: Any, other: Any) -> bool:
    """`===`: the same type and the same value; a list or object equals no other but itself."""
    if type(one) is bool or type(other) is bool:
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if _is_container(one):
        return one is other
    return type(one) is type(other) and bool(one == other)


def is_less(one: Any, other: Any, run: Run) -> bool:
    """`<`: two texts by their characters, everything else by number; never where one is no number."""
    if type(one) is str and type(other) is str:
        return bool(one < other)
    return number(one, run) < number(other, run)


def is_at_most(one: Any, other: Any, run: Run) -> bool:
    """`<=`."""
    if type(one) is str and type(other) is str:
        return bool(one <= other)
    return number(one, run) <= number(other, run)


def contains(run: Run, needle: Any, haystack: Any) -> bool:
    """`in`: text within text, or a member of a list. Null is in no text."""
    if type(haystack) is str:
        run.spend_text(haystack)
        return needle is not None and text(needle, run) in haystack
    if type(haystack) is list:
        run.spend(len(haystack))
        if type(needle) is str:
            return needle in haystack
        return any(strictly_equal(needle, item) for item in haystack)
    return False


def _is_container(value: Any) -> bool:
    return type(value) is list or isinstance(value, Mapping)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _number_text(value: float) -> str:
    """As JavaScript prints it: `1.0` is `1`, `1e-07` is `1e-7`."""
    if value != value:
        return "NaN"
    if value in (math.inf, -math.inf):
        return "Infinity" if value > 0 else "-Infinity"
    if value.is_integer() and abs(value) < _WHOLE_TEXT_BELOW:
        return str(int(value))
    return re.sub(r"e([+-])0", r"e\1", repr(value))
