"""Amounts of money: exact decimals, never floats, and the currencies that there are.

Owns reading an amount that somebody sent, the arithmetic that keeps every digit, and plain notation. An
amount has at most 28 digits, before and behind the point together. Sums may have more: 28 digits on either
side and what counting adds, so the context's precision is beyond every sum of 10^40 amounts, and a digit that
were lost all the same would be an exception (`Inexact` is trapped).
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

from engines.errors import Invalid

DIGITS_MAX: Final = 28
# What an amount may look like at its longest: 28 digits, a point and an exponent.
AMOUNT_CHARS_MAX: Final = 64
ZERO: Final = Decimal(0)

EXACT: Final = Context(prec=100, traps=[Inexact, InvalidOperation, Overflow])
_NUMERAL: Final = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_NOT_FINITE: Final = re.compile(r"[+-]?(s?nan[0-9]*|inf(inity)?)", re.ASCII | re.IGNORECASE)

# ISO 4217, the codes in force on 2026-01-01 (list one), with funds, metals and XXX.
CURRENCIES: Final = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF
    CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP
    GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT
    LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR
    NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN
    SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAD
    XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XTS XUA XXX YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905  (as the standard's table reads)
)


def amount_of(text: str, field: str) -> Decimal:
    """The amount that `text` writes. Raises Invalid: negative, not a number, or beyond 28 digits."""
    if not _NUMERAL.fullmatch(text):
        if text.startswith("-") and _NUMERAL.fullmatch(text[1:]):
            raise Invalid("an amount is not negative", field=field)
        if _NOT_FINITE.fullmatch(text):
            raise Invalid("an amount is a finite number", field=field)
        raise Invalid('an amount is a decimal number as text, such as "0.0125"', field=field)
    return checked(Decimal(text), field)


def checked(value: Decimal, field: str) -> Decimal:
    """An amount that was computed or came from a caller in process. Raises Invalid as `amount_of`."""
    if not value.is_finite():
        raise Invalid("an amount is a finite number", field=field)
    if value < 0:
        raise Invalid("an amount is not negative", field=field)
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if max(0, value.adjusted() + 1) + max(0, -exponent) > DIGITS_MAX:
        raise Invalid(f"an amount has at most {DIGITS_MAX} digits", field=field)
    return value


def plain(value: Decimal) -> str:
    """The number without an exponent, every digit of it."""
    return format(value, "f")


def total(*values: Decimal) -> Decimal:
    """The sum, exactly."""
    result = ZERO
    for value in values:
        result = EXACT.add(result, value)
    return result


def difference(value: Decimal, other: Decimal) -> Decimal:
    """`value - other`, exactly."""
    return EXACT.subtract(value, other)


def product(value: Decimal, count: int, *, per_power_of_ten: int = 0) -> Decimal:
    """`value * count / 10 ** per_power_of_ten`, exactly, without zeros at the end that nobody wrote."""
    result = EXACT.multiply(value, Decimal(count).scaleb(-per_power_of_ten))
    return ZERO if not result else EXACT.normalize(result)


def check_currency(code: str, field: str = "currency") -> str:
    """Raises Invalid for a code that ISO 4217 does not have."""
    if code not in CURRENCIES:
        raise Invalid("a currency is a code of ISO 4217, such as USD", field=field)
    return code
