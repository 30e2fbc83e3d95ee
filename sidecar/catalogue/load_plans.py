"""The section ``plans`` of a catalogue file."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from sidecar.catalogue.load_limits import LimitReader, PlanDefaults
from sidecar.catalogue.load_money import Currencies, prices
from sidecar.catalogue.model import PERIODS, Limit, Plan
from sidecar.catalogue.pricing import minor_places
from sidecar.catalogue.scalars import days, interval_months, name_of, percents
from sidecar.catalogue.yaml_reader import Reader, Value

PLAN_KEYS = (
    "title",
    "price",
    "annual_price",
    "interval",
    "period",
    "cap",
    "alerts",
    "limits",
    "features",
    "forward",
    "trial",
    "past_due",
    "shadow",
)
YEAR_MONTHS = 12
_FEATURE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
_QUOTED = ("'", '"')


class Plans(Struct, frozen=True):
    """All plans with the places of their limits, for the checks across sections."""

    plans: dict[str, Plan]
    limit_values: dict[tuple[str, str], Value]
    features: set[str]


def read_plans(
    reader: Reader, section: Value | None, limits: LimitReader, alerts: tuple[int, ...], currencies: Currencies
) -> Plans:
    """All plans, also those with problems: other sections refer to them."""
    entries = reader.mapping(section)
    plans: dict[str, Plan] = {}
    limit_values: dict[tuple[str, str], Value] = {}
    for name, value in entries.items():
        name_of(reader, value, name, "plan")
        keys = reader.section(value, PLAN_KEYS)
        defaults = PlanDefaults(
            period=_period(reader, keys.get("period")),
            cap=_cap(reader, keys.get("cap")),
            alerts=percents(reader, keys["alerts"]) if "alerts" in keys else alerts,
            currencies=currencies,
        )
        read: list[Limit] = []
        for limit_name, limit_value in reader.mapping(keys.get("limits")).items():
            limit_values[name, limit_name] = limit_value
            limit = limits.read(limit_name, limit_value, defaults)
            if limit is not None:
                read.append(limit)
        features = _features(reader, keys.get("features"))
        past_due = reader.section(keys.get("past_due"), ("grace", "then"))
        price, other_prices = prices(reader, keys.get("price"), currencies, minor_places)
        annual_price, other_annual_prices = prices(reader, keys.get("annual_price"), currencies, minor_places)
        months = interval_months(reader, keys.get("interval"))
        _check_annual(reader, keys.get("annual_price"), annual_price, months)
        plans[name] = Plan(
            name=name,
            title=reader.text(keys.get("title"), name),
            price=price,
            prices=other_prices,
            annual_price=annual_price if "annual_price" in keys else None,
            annual_prices=other_annual_prices if "annual_price" in keys else {},
            interval_months=months,
            limits=tuple(read),
            features=features,
            forward=_forward(reader, keys.get("forward"), features),
            trial_days=days(reader, keys.get("trial")),
            past_due_grace_days=days(reader, past_due.get("grace")),
            past_due_plan=_plan_name(reader, past_due.get("then"), name, entries),
            shadow=reader.boolean(keys.get("shadow")),
        )
    return Plans(plans, limit_values, {feature for plan in plans.values() for feature in plan.features})


def _check_annual(reader: Reader, value: Value | None, price: Decimal, months: int) -> None:
    """A year must be some whole number of the plan's own intervals, or its bills would never meet again."""
    if value is None:
        return
    if months == YEAR_MONTHS or YEAR_MONTHS % months:
        reader.problem(
            value,
            f"an annual price beside an interval of {months} months",
            "it goes with an interval that fits several times into a year, like month",
        )
    elif price == 0 and value.scalar is not None and not value.is_empty:
        reader.problem(value, "gives a whole year away", "write its price, or leave the key away")


def _period(
    reader: Reader, value: Value | None
) -> Literal["second", "minute", "hour", "day", "month", "billing", "lifetime"]:
    chosen = reader.choice(value, PERIODS, "billing")
    return next(period for period in PERIODS if period == chosen)


def _cap(reader: Reader, value: Value | None) -> Literal["hard", "soft"]:
    return "soft" if reader.choice(value, ("hard", "soft"), "hard") == "soft" else "hard"


def _features(reader: Reader, section: Value | None) -> dict[str, str | int | bool]:
    """Features with their values: true, false, whole numbers and texts; anything in quotes is a text."""
    features: dict[str, str | int | bool] = {}
    for name, value in reader.mapping(section).items():
        if not _FEATURE.fullmatch(name):
            reader.problem(
                value,
                f'"{name[:80]}" is no name of a feature',
                'it becomes a header: lower-case letters, digits, "_", "-"',
            )
        text = reader.text(value)
        plain = getattr(value.node, "style", None) not in _QUOTED
        if plain and text in ("true", "false"):
            features[name] = text == "true"
        elif plain and _INTEGER.fullmatch(text):
            features[name] = int(text)
        else:
            if plain and text.lower() in ("yes", "no", "on", "off", "y", "n", "true", "false"):
                reader.problem(
                    value, f'"{text}" may mean a text or a truth value', f'write true, false, or "{text}" in quotes'
                )
            if not text.isprintable() or not text.isascii():
                reader.problem(value, "a feature is sent as a header", "printable ASCII characters only")
            features[name] = text
    return features


def _forward(reader: Reader, section: Value | None, features: dict[str, str | int | bool]) -> tuple[str, ...]:
    names = reader.texts(section)
    headers: dict[str, str] = {}
    for value, name in names:
        if name not in features:
            reader.unknown(value, "feature", name, features)
        other = headers.setdefault(name.replace("_", "-"), name)
        if other != name:
            reader.problem(value, f'"{name}" and "{other}" become the same header', "rename one of them")
    return tuple(dict.fromkeys(name for _, name in names))


def _plan_name(reader: Reader, value: Value | None, own: str, plans: dict[str, Value]) -> str:
    name = reader.text(value)
    if value is not None and name and (name not in plans or name == own):
        reader.unknown(value, "plan", name, [plan for plan in plans if plan != own])
    return name
