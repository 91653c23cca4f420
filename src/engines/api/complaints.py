"""Complaints: what a request that breaks the rules of its type is told, in our own words.

Owns the wording and the path of the member at fault. Leaves the rules to the types.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from engines.errors import Invalid

_ARTICLES: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_WRONG_TYPE: Final = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`")
_LENGTH: Final = re.compile(r"Expected `(str|array|object)` of length (<=|>=|==) (\d+)")
_BOUND: Final = re.compile(r"Expected `(?:int|float)` (<=|>=|<|>) (-?[\d.]+)")
_PATTERN: Final = re.compile(r"Expected `str` matching regex '(.*)'", re.DOTALL)
_COMPARISONS: Final = {"<=": "at most", ">=": "at least", "==": "exactly", "<": "less than", ">": "more than"}
_COUNTED: Final = {"str": "characters", "array": "items", "object": "members"}
# Of a path: a member, or whatever stands in an array or an object of free names.
_STEP: Final = re.compile(r"\.?([^.\[]+)|\[[^\]]*\]")
# Of a longer list the catalogue of calls tells the rest.
VALUES_SHOWN_MAX: Final = 20


def invalid(error: msgspec.ValidationError, type_: Any) -> Invalid:
    """The same complaint in our own words; `field` is its path in what should have been of `type_`."""
    sentence, _, where = str(error).partition(" - at `")
    path = where.removesuffix("`").removeprefix("$").removeprefix(".")
    for pattern, detail in (
        (_UNKNOWN, "there is no such member here"),
        (_MISSING, "this member is required"),
    ):
        if match := pattern.fullmatch(sentence):
            return Invalid(detail, field=f"{path}.{match[1]}" if path else match[1])
    if sentence.startswith("Invalid enum value"):
        return Invalid(_one_of(_values_at(path, type_)), field=path or None)
    return Invalid(_in_our_words(sentence), field=path or None)


def _in_our_words(sentence: str) -> str:
    if match := _WRONG_TYPE.fullmatch(sentence):
        expected = " or ".join(_ARTICLES.get(name, name) for name in match[1].split(" | "))
        return f"expected {expected}, got {_ARTICLES.get(match[2], match[2])}"
    if match := _LENGTH.fullmatch(sentence):
        return f"{_COMPARISONS[match[2]]} {match[3]} {_COUNTED[match[1]]}"
    if match := _BOUND.fullmatch(sentence):
        return f"{_COMPARISONS[match[1]]} {match[2]}"
    if match := _PATTERN.fullmatch(sentence):
        return f"a string that matches {match[1].replace(chr(92) * 2, chr(92)).removesuffix(chr(92) + 'Z')}$"
    if "out of range" in sentence:
        return "a number beyond what is kept exactly"
    return sentence[:1].lower() + sentence[1:]


def _one_of(values: Sequence[str]) -> str:
    if not values:
        return "not one of the values that may stand here"
    shown = ", ".join(values[:VALUES_SHOWN_MAX])
    more = ", …" if len(values) > VALUES_SHOWN_MAX else ""
    return f"expected one of {shown}{more}"


@functools.cache
def _type_info(type_: Any) -> inspect.Type:
    return inspect.type_info(type_)


def _values_at(path: str, type_: Any) -> Sequence[str]:
    """The values that the member at `path` may have, as JSON writes them."""
    found = list(_alternatives(_type_info(type_)))
    for step in _STEP.finditer(path):
        found = [inner for outer in found for inner in _inside(outer, step[1])]
    values = [value for one in found if isinstance(one, inspect.LiteralType) for value in one.values]
    return [msgspec.json.encode(value).decode() for value in values]


def _alternatives(info: inspect.Type) -> Iterable[inspect.Type]:
    """A type without what merely annotates or joins it."""
    if isinstance(info, inspect.Metadata):
        yield from _alternatives(info.type)
    elif isinstance(info, inspect.UnionType):
        for one in info.types:
            yield from _alternatives(one)
    else:
        yield info


def _inside(outer: inspect.Type, member: str | None) -> Iterable[inspect.Type]:
    """What stands below: under the name of a member; with None, in an array or an object of free names."""
    if member is not None and isinstance(outer, inspect.StructType):
        types = [field.type for field in outer.fields if field.encode_name == member]
    elif member is None and isinstance(outer, inspect.DictType):
        types = [outer.value_type]
    elif member is None and isinstance(outer, (inspect.ListType, inspect.VarTupleType, inspect.SetType)):
        types = [outer.item_type]
    else:
        types = []
    for one in types:
        yield from _alternatives(one)
