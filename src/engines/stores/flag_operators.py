"""The operators that flagd adds to JSON Logic: `fractional`, `sem_ver`, `starts_with`, `ends_with`.

Owns their arguments, what they answer and the arithmetic of percentage rollouts. Leaves the other operators
to `stores/json_operators.py`. The source is flagd's own documentation (docs/reference/custom-operations) and
its evaluator of July 2026: an operator whose arguments do not fit answers null, so that a rule falls through
to its default instead of matching by accident. What can be seen to be wrong in the rule itself is refused
when the rule is stored.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import mmh3

from engines.errors import Invalid
from engines.stores.json_logic import Build, Compiler, Rule, check_count, eager
from engines.stores.json_operators import OPERATORS
from engines.stores.json_values import Run, text

# The product of a 32-bit hash and the weights' sum must fit a signed 64-bit integer in every language that
# evaluates the same flag (flagd, "High-Precision Fractional Bucketing").
WEIGHTS_SUM_MAX: Final = 2**31 - 1
HASH_BITS: Final = 32
VERSION_CHARS_MAX: Final = 256
VERSIONS_KEPT_MAX: Final = 1_024

FLAGD: Final = "$flagd"
FLAG_KEY: Final = "flagKey"
TIMESTAMP: Final = "timestamp"
TARGETING_KEY: Final = "targetingKey"

# Digits alone begin with no zero (semver.org, section 9). Each character is looked at twice at most and
# nothing is given back, so that a text that is almost a version costs no more than one that is.
_IDENTIFIER: Final = r"(?!0[0-9]++(?![0-9A-Za-z-]))[0-9A-Za-z-]++"
_NUMBER: Final = r"(0|[1-9][0-9]*+)"
_VERSION: Final = re.compile(
    rf"[vV]?{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*+))?(?:\+[0-9A-Za-z-]++(?:\.[0-9A-Za-z-]++)*+)?)?)?"
)


# --- fractional ---

# A variant and its weight, each as it stands or as a rule makes it.
Share = tuple[Rule, int | Rule]
_NO_WEIGHT: Final = "none"


def bucket_of(value: str, weights_sum: int) -> int:
    """The bucket of a value, from 0 to `weights_sum` - 1: the same for the same value everywhere.

    MurmurHash3 for x86, 32 bits, seed 0, of the value in UTF-8, scaled to the sum by whole numbers alone.
    """
    return int(mmh3.hash(value, 0, signed=False)) * weights_sum >> HASH_BITS


def _fractional(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    check_count(arguments, 1, None, field)
    has_key = type(arguments[0]) is dict
    key_of = compiler.rule(arguments[0], f"{field}[0]") if has_key else None
    shares = [
        _share(compiler, argument, f"{field}[{index}]")
        for index, argument in enumerate(arguments)
        if index > 0 or not has_key
    ]
    fixed = [weight for _, weight in shares if isinstance(weight, int)]
    if sum(fixed) > WEIGHTS_SUM_MAX:
        raise Invalid(f"the weights together are at most {WEIGHTS_SUM_MAX:,}", field=field)
    fixed_ends = list(accumulate(fixed)) if len(fixed) == len(shares) else None

    def fractional(data: Any, run: Run) -> Any:
        found = None if key_of is None else key_of(data, run)
        key = _bucketing_value(found, run)
        if key is None:
            return None
        if type(found) is list:  # No key, but a share that a rule has made.
            return _chosen(key, [_made_share(found), *shares], None, data, run)
        return _chosen(key, shares, fixed_ends, data, run)

    return fractional


def _share(compiler: Compiler, source: Any, field: str) -> Share:
    """A variant and its weight, which is 1 where it is not said. Both may be rules."""
    if type(source) is not list or not 1 <= len(source) <= 2:
        raise Invalid("a share is a list of a variant and its weight, such as ['on', 25]", field=field)
    variant = compiler.rule(source[0], f"{field}[0]")
    if len(source) == 1:
        return variant, 1
    weight = source[1]
    if type(weight) is dict:
        return variant, compiler.rule(weight, f"{field}[1]")
    whole = None if weight is None else _whole(weight)
    if whole is None or weight < 0:
        raise Invalid(f"a weight is a whole number from 0 to {WEIGHTS_SUM_MAX:,}", field=f"{field}[1]")
    return variant, whole


def _whole(weight: Any) -> int | None:
    """A weight as it counts: negative ones, which a computed rollout passes through, are 0."""
    if weight is None:
        return 1
    if type(weight) is float and weight.is_integer():
        weight = int(weight)
    if type(weight) is not int or weight > WEIGHTS_SUM_MAX:
        return None
    return max(0, weight)


def _bucketing_value(found: Any, run: Run) -> str | None:
    """What is hashed: the rule's text, else the flag's key and the targeting key together."""
    if type(found) is str:
        run.spend_text(found)
        return found
    targeting_key = run.root.get(TARGETING_KEY)
    if type(targeting_key) is not str or not targeting_key or not (found is None or type(found) is list):
        return None
    return f"{run.root[FLAGD][FLAG_KEY]}{targeting_key}"


def _made_share(made: list[Any]) -> Share:
    """A share that came of a rule. One that is none spoils the whole split, as a weight that is none does."""
    variant = made[0] if made else None
    weight = _whole(made[1]) if len(made) > 1 else 1 if made else None
    return (lambda _data, _run: variant), (lambda _data, _run: _NO_WEIGHT if weight is None else weight)


def _chosen(key: str, shares: Sequence[Share], ends: list[int] | None, data: Any, run: Run) -> Any:
    """The variant of the share in which the key's bucket lies. `ends`: where shares of fixed weights end."""
    if ends is None:
        weights = [weight if isinstance(weight, int) else _whole(weight(data, run)) for _, weight in shares]
        counted = [weight for weight in weights if weight is not None]
        if len(counted) < len(weights):
            return None
        ends = list(accumulate(counted))
    if not ends or not 0 < ends[-1] <= WEIGHTS_SUM_MAX:
        return None
    try:
        bucket = bucket_of(key, ends[-1])
    except UnicodeEncodeError:  # A lone surrogate, which only a caller in process can pass.
        return None
    variant, _ = shares[bisect_right(ends, bucket)]
    chosen = variant(data, run)
    return None if type(chosen) in (list, dict) else chosen


# --- sem_ver ---


class _Version(NamedTuple):
    """A version (semver.org) in the order of precedence. A release comes after all that precede it."""

    major: tuple[int, str]
    minor: tuple[int, str]
    patch: tuple[int, str]
    is_release: bool
    before_release: tuple[tuple[bool, int, str], ...]


def _version(value: Any, run: Run) -> _Version | None:
    """`1.2.3-rc.1`, `v1.2` or the number 1; what is left out is 0, and build metadata counts for nothing."""
    if type(value) not in (str, int, float):
        return None
    written = value if type(value) is str else text(value, run)
    if len(written) > VERSION_CHARS_MAX:
        return None
    run.spend_dotted(written)
    return _parsed(written)


@lru_cache(maxsize=VERSIONS_KEPT_MAX)
def _parsed(written: str) -> _Version | None:
    """Programs come in few versions, and most of an evaluation went into reading the same ones again."""
    match = _VERSION.fullmatch(written)
    if match is None:
        return None
    major, minor, patch, before = match.groups()
    return _Version(
        _ordered(major),
        _ordered(minor or "0"),
        _ordered(patch or "0"),
        before is None,
        tuple(_identifier(part) for part in before.split(".")) if before else (),
    )


def _ordered(digits: str) -> tuple[int, str]:
    """A number without leading zeros, of any length, as it compares."""
    return len(digits), digits


def _identifier(part: str) -> tuple[bool, int, str]:
    """Numbers come before words, and compare as numbers."""
    return (False, len(part), part) if part.isdigit() else (True, 0, part)


_COMPARISONS: Final[Mapping[str, Any]] = {
    "=": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "^": lambda one, other: one[:1] == other[:1],
    "~": lambda one, other: one[:2] == other[:2],
}


def _sem_ver(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
    check_count(arguments, 3, 3, field)
    for index in (0, 2):
        if type(arguments[index]) is not dict and _version(arguments[index], Run(None)) is None:
            raise Invalid("a version is like 1.2.3 (semver.org)", field=f"{field}[{index}]")
    compare = _COMPARISONS.get(arguments[1]) if type(arguments[1]) is str else None
    if compare is None:
        raise Invalid(f"one of {' '.join(_COMPARISONS)}", field=f"{field}[1]")
    left, right = (_version_rule(compiler, arguments[index], f"{field}[{index}]") for index in (0, 2))

    def sem_ver(data: Any, run: Run) -> bool | None:
        one, other = left(data, run), right(data, run)
        return None if one is None or other is None else compare(one, other)

    return sem_ver


def _version_rule(compiler: Compiler, source: Any, field: str) -> Rule:
    rule = compiler.rule(source, field)
    if type(source) is dict:
        return lambda data, run: _version(rule(data, run), run)
    version = _version(source, Run(None))
    return lambda _data, _run: version


# --- starts_with, ends_with ---


def _compares_texts(build: Build) -> Build:
    """Refuses an argument that is written down and no text."""

    def checked(compiler: Compiler, arguments: Sequence[Any], field: str) -> Rule:
        for index, argument in enumerate(arguments):
            if type(argument) not in (str, dict):
                raise Invalid("a text, or a rule that makes one", field=f"{field}[{index}]")
        return build(compiler, arguments, field)

    return checked


def _starts_with(_run: Run, value: Any, prefix: Any) -> bool | None:
    return value.startswith(prefix) if type(value) is type(prefix) is str else None


def _ends_with(_run: Run, value: Any, suffix: Any) -> bool | None:
    return value.endswith(suffix) if type(value) is type(suffix) is str else None


FLAG_OPERATORS: Final[Mapping[str, Build]] = {
    **OPERATORS,
    "fractional": _fractional,
    "sem_ver": _sem_ver,
    "starts_with": _compares_texts(eager(_starts_with, 2, 2)),
    "ends_with": _compares_texts(eager(_ends_with, 2, 2)),
}
