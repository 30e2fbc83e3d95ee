"""Texts of a catalogue file as amounts, money, percentages, durations and names.

Each function takes a reader to note problems with, and returns a harmless stand-in after noting one.
"""

from __future__ import annotations

import re
from decimal import Decimal

from sidecar.catalogue.amount import AmountInvalid, parse_amount, parse_decimal
from sidecar.catalogue.yaml_reader import Reader, Value

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]{0,126}")
_DURATION = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_DURATION_UNITS_S = (604_800, 86_400, 3_600, 60, 1)
_DURATION_MAX_S = 366 * 86_400
INTERVAL_MONTHS_MAX = 36
_INTERVAL = re.compile(r"(?:(\d{1,2}) ?)?(month|year)s?")
_RESERVED_HEADERS = ("x-quota-", "ratelimit", "retry-after", "host", "content-", "x-original-", "x-forwarded-")


def name_of(reader: Reader, value: Value, text: str, noun: str) -> str:
    """Check a name: it becomes part of keys, headers and meter names."""
    if not _NAME.fullmatch(text):
        plain = re.sub(r"[^a-z0-9_.-]+", "_", text.lower()).strip("_.-")[:63] or noun
        reader.problem(
            value,
            f'"{text[:80]}" is no name of a {noun}',
            f'lower-case letters, digits, "_", "-" and ".", like "{plain}"',
        )
    return text


def amount(reader: Reader, value: Value, scale: int) -> int:
    """An exact amount in base units."""
    try:
        return parse_amount(_number(value), scale)
    except AmountInvalid as error:
        wrong, _, right = str(error).partition("; ")
        reader.problem(value, wrong, right or "write a plain number")
        return 0


def money(reader: Reader, value: Value | None, places: int) -> Decimal:
    """An exact price of at most ``places`` decimal places; 0 when absent."""
    if value is None:
        return Decimal(0)
    try:
        price = parse_decimal(_number(value))
    except AmountInvalid as error:
        wrong, _, right = str(error).partition("; ")
        reader.problem(value, wrong, right)
        return Decimal(0)
    if price < 0:
        reader.problem(value, f"{price} is negative", "a price is 0 or more")
        return Decimal(0)
    if not fits_places(price, places):
        reader.problem(value, f"{price} has too many decimal places", f"at most {places} here")
    return price


def fits_places(number: Decimal, places: int) -> bool:
    """Whether a decimal can be written with that many decimal places."""
    exponent = number.normalize().as_tuple().exponent
    return isinstance(exponent, int) and -exponent <= places


def _number(value: Value) -> str:
    text = value.scalar
    if text is None or value.is_empty or value.is_null:
        raise AmountInvalid(f"is {value.kind}; write a number")
    if "," in text and re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?", text):
        raise AmountInvalid(f'"{text}" has commas; write {text.replace(",", "_")} or {text.replace(",", "")}')
    if re.fullmatch(r"0[0-9_]+", text):
        raise AmountInvalid(f'"{text}" begins with 0, which YAML reads as octal; write {text.lstrip("0_") or "0"}')
    return text


def integer(reader: Reader, value: Value | None, least: int, most: int, default: int) -> int:
    """A whole number between two bounds; the default when absent or wrong, which is noted."""
    if value is None:
        return default
    text = (value.scalar or "").replace("_", "")
    if not re.fullmatch(r"-?\d{1,18}", text) or not least <= int(text) <= most:
        reader.problem(value, f"is {value.kind}", f"a whole number from {least} to {most}")
        return default
    return int(text)


def percent(reader: Reader, value: Value, least: int, most: int) -> int:
    """A whole percentage, with or without the sign."""
    text = (value.scalar or "").removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,6}", text) or not least <= int(text) <= most:
        reader.problem(value, f"is {value.kind}", f"a whole percentage from {least} to {most}, like 80")
        return least
    return int(text)


def percents(reader: Reader, value: Value) -> tuple[int, ...]:
    """Alert thresholds: percentages of the included amount, each once, in order."""
    found = []
    for item in reader.items(value):
        wrong = len(reader.problems)
        threshold = percent(reader, item, 1, 1_000)
        if len(reader.problems) == wrong:
            found.append(threshold)
    if len(set(found)) < len(found):
        reader.problem(value, "a threshold is given twice", "name each once")
    return tuple(sorted(set(found)))


def duration_s(reader: Reader, value: Value | None, default_s: int) -> int:
    """A time like 24h, 7d, 1h30m or 0, in seconds."""
    if value is None:
        return default_s
    text = value.scalar or ""
    if text == "0":
        return 0
    parts = _DURATION.fullmatch(text) if text else None
    if parts is None:
        right = (
            f'a number needs its unit, like "{text}s" or "{text}h"' if text.isdigit() else "write it like 24h, 7d, 90m"
        )
        reader.problem(value, f"is {value.kind}, which is no time", right)
        return default_s
    total_s = sum(int(part or 0) * unit_s for part, unit_s in zip(parts.groups(), _DURATION_UNITS_S, strict=True))
    if total_s > _DURATION_MAX_S:
        reader.problem(value, f"{text} is too long", "at most 366d")
        return default_s
    return total_s


def days(reader: Reader, value: Value | None) -> int:
    """A time in whole days; 0 when absent."""
    seconds = duration_s(reader, value, 0)
    if value is not None and seconds % 86_400:
        reader.problem(value, f"{value.scalar} is not a number of days", "write whole days, like 7d")
    return seconds // 86_400


def interval_months(reader: Reader, value: Value | None) -> int:
    """How often a plan is paid: month, year, or "3 months"."""
    if value is None:
        return 1
    match = _INTERVAL.fullmatch(value.scalar or "")
    months = int(match[1] or 1) * (12 if match[2] == "year" else 1) if match else 0
    if not 1 <= months <= INTERVAL_MONTHS_MAX:
        reader.problem(
            value, f"is {value.kind}", 'write month, year, or a number of months like "3 months", 36 at most'
        )
        return 1
    return months


def header_name(reader: Reader, value: Value | None, allowed: tuple[str, ...] = ()) -> str:
    """A header that a gateway passes on, in lower case; aliases and headers that others set are refused."""
    if value is None:
        return ""
    header = reader.text(value).lower()
    if not header:
        return ""
    if not _HEADER.fullmatch(header):
        plain = re.sub(r"[^a-z0-9]+", "-", header).strip("-")
        reader.problem(
            value,
            f'"{header}" can be confused with an alias of another header',
            f'letters, digits and dashes only, like "{plain}"',
        )
    elif header.startswith(_RESERVED_HEADERS) and header not in allowed:
        reader.problem(value, f'"{header}" is set by the gateway or by the sidecar', "use a header of your own")
    return header
