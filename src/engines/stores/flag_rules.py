"""Feature flags as values: what a definition may say, and what it says for one evaluation context.

Owns the form of a definition, in the semantics of flagd's (flagd.dev, "Flag Definitions"; its schema is
flagd-schemas' `json/flags.yaml`), its checks and its evaluation. Leaves JSON Logic to `stores/json_logic.py`,
flagd's operators to `stores/flag_operators.py`, and where definitions lie to `stores/flags.py`. No I/O.

What differs from a file of flagd's: a definition is one flag, which carries the named rules (`$evaluators`)
that its own targeting refers to, so that one version of it says everything. Named rules may refer to each
other; in a circle they may not. What flagd warns of and runs, such as a negative weight that is written
down, is refused when it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engines.errors import EnginesError, Invalid
from engines.stores.flag_operators import FLAG_KEY, FLAG_OPERATORS, FLAGD, TARGETING_KEY, TIMESTAMP
from engines.stores.json_logic import Compiler, Rule
from engines.stores.json_values import STEPS_MAX, Run

VARIANTS_MAX: Final = 100
EVALUATORS_MAX: Final = 50
METADATA_MAX: Final = 50
NAME_CHARS_MAX: Final = 128
METADATA_CHARS_MAX: Final = 1_000
# What every JSON reader keeps exactly, JavaScript's included (RFC 8259, section 6).
NUMBER_MAX: Final = 2**53 - 1

State = Literal["ENABLED", "DISABLED"]
FlagType = Literal["boolean", "string", "number", "object"]
Reason = Literal["STATIC", "DEFAULT", "TARGETING_MATCH", "DISABLED", "ERROR"]
ErrorCode = Literal["FLAG_NOT_FOUND", "PARSE_ERROR", "INVALID_CONTEXT", "GENERAL"]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Metadatum = Annotated[str, Meta(max_length=METADATA_CHARS_MAX)] | bool | int | float

_TYPES: Final[Mapping[type[Any], FlagType]] = {
    bool: "boolean",
    str: "string",
    int: "number",
    float: "number",
    dict: "object",
}
_SHOWN: Final = frozenset({f"{FLAGD}.{FLAG_KEY}", f"{FLAGD}.{TIMESTAMP}"})
_VARIANT_OF: Final = {True: "true", False: "false"}


class FlagDefinition(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename={"type_": "type", "default_variant": "defaultVariant", "evaluators": "$evaluators"},
):
    """One flag. All variants have one type; `type` may say which, and is then held to it.

    `targeting` is JSON Logic that names a variant, or answers true or false for the variant so named, or
    null for `defaultVariant`. Without a default variant the program that asks uses its own default.
    """

    state: State
    variants: Annotated[dict[Name, Any], Meta(min_length=1, max_length=VARIANTS_MAX)]
    type_: FlagType | None = None
    default_variant: Name | None = None
    targeting: dict[str, Any] = {}
    evaluators: Annotated[dict[Name, Any], Meta(max_length=EVALUATORS_MAX)] = {}
    metadata: Annotated[dict[Name, Metadatum], Meta(max_length=METADATA_MAX)] = {}


class Evaluation(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename={"error_code": "errorCode", "error_details": "errorDetails"},
):
    """What a flag says. Without `value` the program that asks uses its own default.

    Where `reason` is ERROR, `error_code` is one of OpenFeature's and `error_details` a sentence.
    """

    key: str
    reason: Reason
    variant: str | UnsetType = UNSET
    value: Any = UNSET
    metadata: dict[str, str | bool | int | float] = {}
    error_code: ErrorCode | UnsetType = UNSET
    error_details: str | UnsetType = UNSET


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Evaluation).decode


class Allowance:
    """The steps that are left to all evaluations of one request together."""

    __slots__ = ("steps_left",)

    def __init__(self, steps_max: int) -> None:
        self.steps_left = steps_max

    def take(self, run: Run) -> None:
        """What a run took of it: all that it was given where it wanted more."""
        self.steps_left -= run.steps_max - max(0, run.steps_left)


class Flag:
    """A definition that was checked and compiled. Any number of evaluations, each in a few microseconds."""

    __slots__ = ("_matches", "_otherwise", "_rule", "key")

    def __init__(self, key: str, definition: FlagDefinition) -> None:
        """Raises Invalid, naming the member that breaks a rule, and TooLarge for targeting past a bound."""
        self.key = key
        _check_variants(definition)
        rule = _targeting(definition)
        self._rule = None if definition.state == "DISABLED" else rule
        self._matches = {
            name: _kept(
                Evaluation(
                    key=key, reason="TARGETING_MATCH", variant=name, value=value, metadata=definition.metadata
                )
            )
            for name, value in definition.variants.items()
        }
        self._otherwise = _kept(_otherwise(key, definition))

    def evaluate(
        self, context: Mapping[str, Any], now_s: float, allowance: Allowance | None = None
    ) -> Evaluation:
        """What the flag says in `context`, whose `targetingKey` is a string if it is there; never raises.

        `now_s` is `$flagd.timestamp`, in seconds since the epoch. Where an `allowance` has fewer steps left
        than one evaluation may take, it takes no more than those.
        """
        if self._rule is None:
            return _own(self._otherwise)
        steps_max = STEPS_MAX if allowance is None else min(STEPS_MAX, allowance.steps_left)
        run = Run({**context, FLAGD: {FLAG_KEY: self.key, TIMESTAMP: int(now_s)}}, steps_max=steps_max)
        try:
            result = self._rule(run.root, run)
        except EnginesError as error:
            return failure(self.key, "GENERAL", error.detail)
        except RecursionError:
            return failure(self.key, "INVALID_CONTEXT", "the context is nested too deep")
        finally:
            if allowance is not None:
                allowance.take(run)
        if result is None:
            return _own(self._otherwise)
        if type(result) is bool:
            result = _VARIANT_OF[result]
        found = self._matches.get(result) if type(result) is str else None
        if found is None:
            return failure(self.key, "GENERAL", "the targeting names no variant of the flag")
        return _own(found)


def _otherwise(key: str, definition: FlagDefinition) -> Evaluation:
    """What the flag says where no targeting speaks: its default variant, or nothing of its own."""
    variant = definition.default_variant
    if definition.state == "DISABLED" or variant is None:
        # The program's own default is a DEFAULT with flagd, whether there is targeting or not.
        reason: Reason = "DISABLED" if definition.state == "DISABLED" else "DEFAULT"
        return Evaluation(key=key, reason=reason, metadata=definition.metadata)
    return Evaluation(
        key=key,
        reason="DEFAULT" if definition.targeting else "STATIC",
        variant=variant,
        value=definition.variants[variant],
        metadata=definition.metadata,
    )


def _kept(evaluation: Evaluation) -> Evaluation | bytes:
    """As it is kept: encoded where it holds what a caller could change, so that each gets one of its own."""
    holds_objects = isinstance(evaluation.value, dict) or evaluation.metadata
    return _encode(evaluation) if holds_objects else evaluation


def _own(kept: Evaluation | bytes) -> Evaluation:
    return _decode(kept) if isinstance(kept, bytes) else kept


def failure(key: str, code: ErrorCode, details: str) -> Evaluation:
    """An evaluation that came to nothing."""
    return Evaluation(key=key, reason="ERROR", error_code=code, error_details=details)


def check_context(context: Any, field: str = "context") -> None:
    """Raises Invalid for what is no evaluation context: an object, whose targeting key is a string."""
    if type(context) is not dict and not isinstance(context, Mapping):
        raise Invalid("an evaluation context is an object", field=field)
    if not isinstance(context.get(TARGETING_KEY, ""), str):
        raise Invalid("the targeting key is a string", field=f"{field}.{TARGETING_KEY}")


def _check_variants(definition: FlagDefinition) -> None:
    """All variants have one type, and the default is one of them. Raises Invalid."""
    common = definition.type_
    for name, value in definition.variants.items():
        field = f"variants.{name}"
        type_ = _TYPES.get(type(value))
        if type_ is None:
            raise Invalid("a variant is a boolean, a string, a number or an object", field=field)
        if type_ != (common or type_):
            said = "the flag's type is" if definition.type_ else "the variants before it are of type"
            raise Invalid(f"{said} {common}, and this variant is of type {type_}", field=field)
        if type_ == "number" and not (math.isfinite(value) and abs(value) <= NUMBER_MAX):
            raise Invalid(f"a number is at most {NUMBER_MAX:,} either way", field=field)
        common = type_
    if definition.default_variant is not None and definition.default_variant not in definition.variants:
        raise Invalid("the default variant is one of the variants", field="defaultVariant")


def _targeting(definition: FlagDefinition) -> Rule | None:
    """The compiled targeting, if there is any. Named rules that it does not refer to are checked as well."""
    compiler = _compiler(definition)
    rule = compiler.rule(definition.targeting, "targeting") if definition.targeting else None
    for name, source in definition.evaluators.items():
        if type(source) is not dict:
            raise Invalid(
                "a named rule is an object with one member, its operator", field=f"$evaluators.{name}"
            )
        _compiler(definition).rule({"$ref": name}, f"$evaluators.{name}")
    return rule


def _compiler(definition: FlagDefinition) -> Compiler:
    return Compiler(FLAG_OPERATORS, definition.evaluators, _check_name)


def _check_name(name: str, field: str) -> None:
    if name.startswith(f"{FLAGD}.") and name not in _SHOWN:
        raise Invalid(f"{FLAGD} has {FLAG_KEY} and {TIMESTAMP}", field=field)
