"""The policy of a budget: its currency, its limits and its prices.

Owns their fields and rules, when a period begins and ends, which limits apply to a use, and which price is in
force at a time. Leaves counting against limits to `stores/budget_accounts.py`.

Periods are UTC and begin at their boundary. A window is half open: from `valid_from` until just before
`valid_until`. What a use costs is said by the price in force when it happened; where several are, the one
that names most of (tool, model) holds, a tool before a model. No price is no cost of zero: it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from engines.codec import canonical_json
from engines.errors import Invalid
from engines.scope import check_id, normalise_surface
from engines.stores.budget_amounts import (
    AMOUNT_CHARS_MAX,
    amount_of,
    check_currency,
    checked,
    plain,
    product,
    total,
)
from engines.stores.event_records import Instant, instant_ms
from engines.stores.scoped import IdentityFields, Stamped, validated

LIMITS_MAX: Final = 50
PRICES_MAX: Final = 500
NAME_CHARS_MAX: Final = 128
# Prices of tokens are told by the million, as providers do.
_MILLION_POWER: Final = 6
_NO_BEGINNING: Final = -(2**62)
_NO_END: Final = 2**62

Period = Literal["hour", "day", "month", "total"]
Amount = Annotated[str, msgspec.Meta(min_length=1, max_length=AMOUNT_CHARS_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Currency = Annotated[str, msgspec.Meta(min_length=3, max_length=3)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be spent in a period, by the whole tenant or by what it names: all of them must fit.

    `hard`: no reservation passes it. `soft`: passing it is told once a period. At least one of both.
    """

    limit_id: str
    period: Period
    hard: Amount | None = None
    soft: Amount | None = None
    project_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    provider: Name | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a provider takes: for a million tokens in, a million out, and each unit (a call)."""

    provider: Name
    model: Name | None = None
    tool: Name | None = None
    input_per_million: Amount | None = None
    output_per_million: Amount | None = None
    per_unit: Amount | None = None
    valid_from: Instant | None = None
    valid_until: Instant | None = None


Limits = Annotated[tuple[Limit, ...], msgspec.Meta(max_length=LIMITS_MAX)]
Prices = Annotated[tuple[Price, ...], msgspec.Meta(max_length=PRICES_MAX)]


class PolicyInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT. All amounts are in `currency`."""

    currency: Currency
    limits: Limits = ()
    prices: Prices = ()


class Policy(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """The policy as it is stored and shown; the identity is its writer's. `version` counts from 1."""

    currency: str
    limits: tuple[Limit, ...]
    prices: tuple[Price, ...]
    version: int
    created_at: str
    updated_at: str


class Dimensions(msgspec.Struct, frozen=True, omit_defaults=True):
    """By what use is told apart."""

    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    project_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None


def check_policy(policy: PolicyInput) -> PolicyInput:
    """The policy with its surfaces folded. Raises Invalid with the field that breaks its rule."""
    check_currency(policy.currency)
    limits = tuple(_checked_limit(limit, f"limits[{index}]") for index, limit in enumerate(policy.limits))
    seen: set[str] = set()
    for index, limit in enumerate(limits):
        if limit.limit_id in seen:
            raise Invalid("two limits have one limit_id", field=f"limits[{index}].limit_id")
        seen.add(limit.limit_id)
    for index, price in enumerate(policy.prices):
        _check_price(price, f"prices[{index}]")
    _check_overlaps(policy.prices)
    return msgspec.structs.replace(policy, limits=limits)


def account_key(limit: Limit) -> str:
    """Where a limit counts: another period or scope is another account, another amount is not."""
    counted = [limit.period, limit.project_id, limit.surface_id, limit.app_id, limit.provider]
    return f"{limit.limit_id}.{hashlib.sha256(canonical_json(counted).encode()).hexdigest()[:8]}"


def is_in_force(window: Limit | Price, at_ms: int) -> bool:
    begin_ms, end_ms = _window(window)
    return begin_ms <= at_ms < end_ms


def limits_for(policy: Policy | None, use: Dimensions) -> Iterator[Limit]:
    """The limits that count a use, in force or not."""
    return (limit for limit in (() if policy is None else policy.limits) if counts(limit, use))


def counts(limit: Limit, use: Dimensions) -> bool:
    return (
        limit.project_id in (None, use.project_id)
        and limit.surface_id in (None, use.surface_id)
        and limit.app_id in (None, use.app_id)
        and limit.provider in (None, use.provider)
    )


def priced(
    policy: Policy | None, use: Dimensions, *, tokens_in: int, tokens_out: int, units: int, at_ms: int
) -> Decimal:
    """What a use at `at_ms` costs. Raises Invalid where no price in force says so."""
    price = _price_in_force(() if policy is None else policy.prices, use, at_ms)
    if price is None:
        raise Invalid("no price is in force for this use at its time: say its cost", field="cost")
    parts: list[Decimal] = []
    for name, count, rate, power in (
        ("tokens_in", tokens_in, price.input_per_million, _MILLION_POWER),
        ("tokens_out", tokens_out, price.output_per_million, _MILLION_POWER),
        ("units", units, price.per_unit, 0),
    ):
        if rate is not None and count:
            parts.append(product(Decimal(rate), count, per_power_of_ten=power))
        elif count and rate is None and name != "units":
            raise Invalid("the price in force has no rate for these tokens: say the cost", field=name)
    if not parts:
        raise Invalid("the price in force has no rate for what was used: say the cost", field="cost")
    return checked(total(*parts), "cost")


def period_start_s(period: Period, at_s: float) -> int:
    """Epoch seconds at which the period that holds `at_s` began; 0 for `total`."""
    return int(_start(period, at_s).timestamp()) if period != "total" else 0


def period_end_s(period: Period, at_s: float) -> int | None:
    """Epoch seconds at which the next period begins; None for `total`, which has no end."""
    if period == "total":
        return None
    start = _start(period, at_s)
    if period == "month":
        return int((start + timedelta(days=32)).replace(day=1).timestamp())
    return int((start + (timedelta(hours=1) if period == "hour" else timedelta(days=1))).timestamp())


def _start(period: Period, at_s: float) -> datetime:
    hour = datetime.fromtimestamp(at_s, UTC).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return hour
    return hour.replace(hour=0) if period == "day" else hour.replace(hour=0, day=1)


def _checked_limit(limit: Limit, field: str) -> Limit:
    limit = validated(limit, field)
    check_id(limit.limit_id, f"{field}.limit_id")
    for name in ("project_id", "app_id"):
        if (value := getattr(limit, name)) is not None:
            check_id(value, f"{field}.{name}")
    surface_id = limit.surface_id
    if surface_id is not None:
        surface_id = normalise_surface(surface_id, f"{field}.surface_id")
    hard, soft = _amount(limit.hard, f"{field}.hard"), _amount(limit.soft, f"{field}.soft")
    if hard is None and soft is None:
        raise Invalid("a limit is hard, soft, or both", field=f"{field}.hard")
    if hard is not None and soft is not None and soft > hard:
        raise Invalid("the soft limit is not above the hard one", field=f"{field}.soft")
    _check_window(limit, field)
    return msgspec.structs.replace(
        limit,
        surface_id=surface_id,
        hard=None if hard is None else plain(hard),
        soft=None if soft is None else plain(soft),
    )


def _check_price(price: Price, field: str) -> None:
    price = validated(price, field)
    rates = [
        _amount(getattr(price, name), f"{field}.{name}")
        for name in ("input_per_million", "output_per_million", "per_unit")
    ]
    if rates == [None, None, None]:
        raise Invalid("a price has at least one rate", field=f"{field}.per_unit")
    _check_window(price, field)


def _amount(text: str | None, field: str) -> Decimal | None:
    return None if text is None else amount_of(text, field)


def _check_window(window: Limit | Price, field: str) -> None:
    begin_ms, end_ms = _window(window, f"{field}.")
    if end_ms <= begin_ms:
        raise Invalid("the period ends before it begins", field=f"{field}.valid_until")


def _window(window: Limit | Price, prefix: str = "") -> tuple[int, int]:
    begin, end = window.valid_from, window.valid_until
    return (
        _NO_BEGINNING if begin is None else instant_ms(begin, f"{prefix}valid_from"),
        _NO_END if end is None else instant_ms(end, f"{prefix}valid_until"),
    )


def _check_overlaps(prices: Sequence[Price]) -> None:
    """Two prices of one thing at one time would be a riddle."""
    windows: dict[tuple[str, str | None, str | None], list[tuple[int, int, int]]] = {}
    for index, price in enumerate(prices):
        begin_ms, end_ms = _window(price)
        windows.setdefault((price.provider, price.model, price.tool), []).append((begin_ms, end_ms, index))
    for same in windows.values():
        for (_, end_ms, _), (begin_ms, _, index) in pairwise(sorted(same)):
            if begin_ms < end_ms:
                raise Invalid("another price of the same is valid then", field=f"prices[{index}].valid_from")


def _price_in_force(prices: Sequence[Price], use: Dimensions, at_ms: int) -> Price | None:
    fitting = [
        price
        for price in prices
        if price.provider == use.provider
        and price.model in (None, use.model)
        and price.tool in (None, use.tool)
        and is_in_force(price, at_ms)
    ]
    return max(fitting, key=lambda price: (price.tool is not None, price.model is not None), default=None)
