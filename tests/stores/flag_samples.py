"""Flags that tests evaluate, with nothing in them that a test did not ask for."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.stores.flag_rules import Evaluation, Flag, FlagDefinition

NOW_S = 1_795_000_000.5


def definition(**members: Any) -> FlagDefinition:
    """A boolean flag that is off by default, with `members` as they stand in JSON."""
    plain = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
    return msgspec.convert({**plain, **members}, FlagDefinition)


def evaluated(context: dict[str, Any] | None = None, key: str = "flag", **members: Any) -> Evaluation:
    return Flag(key, definition(**members)).evaluate(context or {}, NOW_S)


def texts(*names: str) -> dict[str, str]:
    """Variants whose values are their names."""
    return {name: name for name in names}


def variant_of(
    targeting: Any, context: dict[str, Any], *names: str, key: str = "flag", **members: Any
) -> str:
    """The variant among `names`, or `default`, or the error code."""
    found = evaluated(
        context,
        key,
        variants=texts("default", *names),
        defaultVariant="default",
        targeting=targeting,
        **members,
    )
    if found.reason == "ERROR":
        return str(found.error_code)
    assert found.reason == ("TARGETING_MATCH" if found.variant != "default" else "DEFAULT")
    assert found.value == found.variant
    return str(found.variant)
