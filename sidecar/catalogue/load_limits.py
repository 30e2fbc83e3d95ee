"""The limits of one plan in a catalogue file: written short (``metric: amount``) or long, with checked defaults."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from msgspec import Struct

from sidecar.catalogue.amount import AMOUNT_MAX, format_amount
from sidecar.catalogue.load_money import Currencies, prices
from sidecar.catalogue.model import GRACE_S, PERIODS, Limit, Metric, Outage, Overage, Period
from sidecar.catalogue.pricing import minor_places
from sidecar.catalogue.scalars import amount, duration_s, fits_places, money, name_of, percent, percents
from sidecar.catalogue.yaml_reader import Reader, Value

LIMIT_KEYS = (
    "metric",
    "included",
    "period",
    "cap",
    "scope",
    "routes",
    "overage",
    "ceiling",
    "credits",
    "grace",
    "buffer",
    "on_outage",
    "shadow",
    "alerts",
)
SCOPES: tuple[Literal["tenant", "route", "key", "user"], ...] = ("tenant", "route", "key", "user")
BEYOND_KEYS = ("overage", "ceiling", "credits", "grace", "buffer")
PRICE_PLACES = 14  # Stripe takes 12 decimal places of the minor unit
UNIT_PRICE_PLACES = 12
CREDIT_PLACES = 6


class PlanDefaults(Struct, frozen=True):
    """What limits of a plan take when they do not say."""

    period: Period
    cap: Literal["hard", "soft"]
    alerts: tuple[int, ...]
    currencies: Currencies


class LimitReader(Struct, frozen=True):
    """Reads limits against the metrics and routes of the file."""

    reader: Reader
    metrics: dict[str, Metric]
    routes: tuple[str, ...]

    def read(self, name: str, value: Value, defaults: PlanDefaults) -> Limit | None:
        """One limit; None when its metric is unknown, which is noted."""
        reader = self.reader
        name_of(reader, value, name, "limit")
        short = value.scalar is not None
        keys = {"included": value} if short else reader.section(value, LIMIT_KEYS)
        metric_name = reader.text(keys.get("metric"), name)
        metric = self.metrics.get(metric_name)
        if metric is None:
            reader.unknown(keys.get("metric", value), "metric", metric_name, self.metrics)
            return None
        if not short and "included" not in keys:
            reader.problem(value, "the included amount is missing", 'add "included: 1000", or null for unlimited')
        included = self._amount_or_none(keys.get("included"), metric)
        cap = self._cap(keys, defaults)
        overage = self._overage(keys.get("overage"), metric, defaults.currencies)
        outage, outage_units = self._outage(keys.get("on_outage"), metric, cap)
        limit = Limit(
            name=name,
            metric=metric_name,
            period=_period(reader, keys.get("period"), defaults.period),
            included=included,
            cap=cap,
            scope=next(scope for scope in SCOPES if scope == reader.choice(keys.get("scope"), SCOPES, "tenant")),
            routes=self._routes(keys.get("routes")),
            overage=overage,
            ceiling=self._ceiling(keys.get("ceiling"), metric, included, overage),
            credits="credits" in keys,
            credit_price=money(reader, keys.get("credits"), CREDIT_PLACES),
            grace_s=self._grace_s(keys, cap, included),
            buffer_percent=percent(reader, keys["buffer"], 0, 1_000) if "buffer" in keys else None,
            on_outage=outage,
            outage_units=outage_units,
            shadow=reader.boolean(keys.get("shadow")),
            alerts=percents(reader, keys["alerts"]) if "alerts" in keys else defaults.alerts,
        )
        self._check_beyond(limit, keys)
        self._check(limit, keys, metric)
        return limit

    def _amount_or_none(self, value: Value | None, metric: Metric) -> int | None:
        if value is None or value.is_null:
            return None
        if value.is_empty:
            self.reader.problem(value, "is empty", "write an amount, or null for unlimited")
            return None
        return amount(self.reader, value, metric.scale)

    def _cap(self, keys: dict[str, Value], defaults: PlanDefaults) -> Literal["hard", "soft"]:
        """What is said, else soft when something beyond the included amount is, else the plan's default."""
        implied = "soft" if any(key in keys for key in BEYOND_KEYS) else defaults.cap
        return "hard" if self.reader.choice(keys.get("cap"), ("hard", "soft"), implied) == "hard" else "soft"

    def _overage(self, value: Value | None, metric: Metric, currencies: Currencies) -> Overage | None:
        """A price for each unit, or ``{price, per}``; ``per`` is in whole units in the file, in base units after."""
        if value is None:
            return None
        keys = {"price": value} if value.scalar is not None else self.reader.section(value, ("price", "per"))
        if "price" not in keys:
            self.reader.problem(value, "the price is missing", 'write it like {price: "0.01", per: 1000}')
            return None
        price, others = prices(self.reader, keys["price"], currencies, lambda _: PRICE_PLACES)
        per = amount(self.reader, keys["per"], metric.scale) if "per" in keys else 10**metric.scale
        if per == 0:
            self.reader.problem(keys.get("per", value), "a price per 0 units is none", "write 1 or more")
            return None
        for currency, amount_of in {currencies.own: price, **others}.items():
            unit_price = amount_of.scaleb(minor_places(currency) + metric.scale)
            if unit_price % per and not fits_places(unit_price / per, UNIT_PRICE_PLACES):
                self.reader.problem(
                    keys.get("per", value),
                    f"{amount_of} per {format_amount(per, metric.scale)} is no exact price of one unit",
                    f"at most {UNIT_PRICE_PLACES} decimal places of the minor unit; a power of ten as per always works",
                )
        return Overage(price=price, per=per, prices=others)

    def _ceiling(
        self, value: Value | None, metric: Metric, included: int | None, overage: Overage | None
    ) -> int | None:
        """A stop in units, or ``{spend: money}`` turned into the units that this much overage buys."""
        if value is None or included is None:
            return None
        if value.scalar is not None:
            ceiling = amount(self.reader, value, metric.scale)
        else:
            keys = self.reader.section(value, ("spend",))
            if "spend" not in keys or overage is None or overage.price == 0:
                self.reader.problem(
                    value,
                    "a spend ceiling needs a spend and an overage price",
                    'write "ceiling: {spend: 50}" beside "overage"',
                )
                return None
            spend = money(self.reader, keys["spend"], PRICE_PLACES)
            ceiling = min(AMOUNT_MAX, included + int(spend * overage.per // overage.price))
        if ceiling < included:
            self.reader.problem(
                value,
                f"the ceiling {format_amount(ceiling, metric.scale)} is below the included amount",
                f"at least {format_amount(included, metric.scale)}",
            )
        return ceiling

    def _grace_s(self, keys: dict[str, Value], cap: str, included: int | None) -> int:
        if "grace" in keys:
            return duration_s(self.reader, keys["grace"], GRACE_S)
        paid = "overage" in keys or ("credits" in keys and "buffer" not in keys)
        open_ended = paid or included is None or cap == "hard"
        return 0 if open_ended else GRACE_S

    def _outage(self, value: Value | None, metric: Metric, cap: str) -> tuple[Outage, int]:
        default: Outage = "closed" if cap == "hard" else "open"
        if value is None:
            return default, 0
        if value.scalar is not None:
            chosen = self.reader.choice(value, ("closed", "open"), default)
            return ("closed" if chosen == "closed" else "open"), 0
        keys = self.reader.section(value, ("bounded",))
        if "bounded" not in keys:
            self.reader.problem(value, "says nothing", 'write closed, open, or "{bounded: 100}" units for each worker')
            return default, 0
        return "bounded", amount(self.reader, keys["bounded"], metric.scale)

    def _routes(self, value: Value | None) -> tuple[str, ...]:
        named = self.reader.texts(value)
        for item, route in named:
            if route not in self.routes:
                self.reader.unknown(item, "route", route, self.routes)
        return tuple(route for _, route in named)

    def _check_beyond(self, limit: Limit, keys: dict[str, Value]) -> None:
        """Whether what is said about beyond the included amount can ever happen."""
        reader = self.reader
        if limit.cap == "hard":
            for key in (key for key in BEYOND_KEYS if key in keys):
                reader.problem(
                    keys[key], f"{key} on a hard cap", f'a hard cap denies beyond; set "cap: soft" or remove {key}'
                )
        if limit.included is None:
            for key in (key for key in BEYOND_KEYS if key in keys):
                reader.problem(keys[key], f"{key} beyond unlimited", f"give an included amount, or remove {key}")
        if limit.overage:
            for key in (key for key in ("credits", "grace", "buffer") if key in keys):
                reader.problem(
                    keys[key], f"{key} is never reached: overage bills all that is beyond", f"remove {key} or overage"
                )
        unused = limit.cap == "soft" and limit.included is not None and not limit.grace_s and not limit.overage
        if unused and limit.buffer_percent is not None:
            reader.problem(
                keys["buffer"], "a buffer without grace is never used", "it is room while grace lasts: give one"
            )

    def _check(self, limit: Limit, keys: dict[str, Value], metric: Metric) -> None:
        """What the parts of a limit say about each other."""
        reader = self.reader
        if limit.overage and (limit.period != "billing" or limit.scope != "tenant"):
            reader.problem(
                keys["overage"],
                f"overage on a limit of period {limit.period} and scope {limit.scope}",
                "invoices bill the tenant's billing period: period billing, scope tenant",
            )
        if limit.ceiling is not None and limit.buffer_percent is not None:
            reader.problem(keys["buffer"], "a buffer and a ceiling both stop the limit", "keep one of them")
        if limit.credits and limit.credit_price == Decimal(0):
            reader.problem(keys["credits"], "a unit costs no credits", 'write what one unit costs, like "credits: 2.5"')
        if limit.routes and limit.scope != "route":
            reader.problem(keys["routes"], f"routes on a limit of scope {limit.scope}", 'add "scope: route"')
        if metric.kind == "level" and limit.scope != "tenant":
            reader.problem(keys["scope"], "a level metric is one value of the tenant", "remove the scope")


def _period(reader: Reader, value: Value | None, default: Period) -> Period:
    chosen = reader.choice(value, PERIODS, default)
    return next(period for period in PERIODS if period == chosen)
