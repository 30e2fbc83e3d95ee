"""The catalogue as values: metrics, plans, limits, prices, route and identity rules.

Amounts are integers in the metric's base unit, money is an exact ``Decimal``; nothing here is a float.
Everything is frozen, so that one catalogue is one snapshot that can be swapped in a single assignment.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from msgspec import Struct

Period = Literal["second", "minute", "hour", "day", "month", "billing", "lifetime"]
ANONYMOUS = "(anonymous)"  # the tenant that requests without identity count for
PERIODS: tuple[Period, ...] = ("second", "minute", "hour", "day", "month", "billing", "lifetime")
GRACE_S = 86_400  # of a soft cap that says nothing about what is beyond it
Outage = Literal["closed", "open", "bounded"]
Beyond = Literal["deny", "bill", "credits", "grace"]


class Metric(Struct, frozen=True, kw_only=True):
    """What is counted. ``scale`` is the number of decimal places of its decimal form (base unit = 10**-scale).

    ``reported`` metrics are fed by usage reports, not (only) by route costs.
    """

    name: str
    kind: Literal["sum", "level"] = "sum"
    scale: int = 0
    unit: str = ""
    title: str = ""
    billed_by: Literal["sum", "last", "max", "integral"] = "sum"
    reported: bool = False


class Overage(Struct, frozen=True, kw_only=True):
    """Price beyond the included amount: ``price`` in the catalogue's currency (major unit) per ``per`` base units.

    ``prices`` are those in its other currencies.
    """

    price: Decimal
    per: int = 1
    prices: dict[str, Decimal] = {}


class Limit(Struct, frozen=True, kw_only=True):
    """One limit of a plan. ``included`` None is unlimited. Amounts in base units; percentages are integers.

    scope: "tenant", "route", "key" or "user". A route-scoped limit counts each route rule on its own, or only
    the rules named in ``routes``. ``credit_price`` is what one whole unit beyond costs in credits.
    """

    name: str
    metric: str
    period: Period
    included: int | None
    cap: Literal["hard", "soft"]
    scope: Literal["tenant", "route", "key", "user"] = "tenant"
    routes: tuple[str, ...] = ()
    overage: Overage | None = None
    ceiling: int | None = None
    credits: bool = False
    credit_price: Decimal = Decimal(0)
    grace_s: int = 0
    buffer_percent: int | None = None
    on_outage: Outage = "closed"
    outage_units: int = 0
    shadow: bool = False
    alerts: tuple[int, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """A named set of limits, features and prices. ``price`` is per ``interval_months`` in the major unit.

    ``annual_price`` is the base price of a whole year, for those who pay it that way; the limits' periods and overages
    stay those of ``interval_months``. ``prices`` and ``annual_prices`` are those in the catalogue's other currencies.
    """

    name: str
    title: str = ""
    price: Decimal = Decimal(0)
    prices: dict[str, Decimal] = {}
    annual_price: Decimal | None = None
    annual_prices: dict[str, Decimal] = {}
    interval_months: int = 1
    limits: tuple[Limit, ...] = ()
    features: dict[str, str | int | bool] = {}
    forward: tuple[str, ...] = ()  # features passed to the upstream as x-quota-feature-<name>
    trial_days: int = 0
    past_due_grace_days: int = 0
    past_due_plan: str = ""  # plan after the grace; empty: suspended until payment
    shadow: bool = False


class RouteRule(Struct, frozen=True, kw_only=True):
    """method + host + path pattern -> cost per metric (base units), features required, metrics needing headroom."""

    name: str
    methods: tuple[str, ...] = ()  # empty: every method
    host: str = ""  # empty: every host; "*.example.com" allowed
    path: str = "/**"  # segments; {name} or * one segment, ** the rest
    costs: dict[str, int] = {}
    requires: tuple[str, ...] = ()
    headroom: tuple[str, ...] = ()


class IdentityRule(Struct, frozen=True, kw_only=True):
    """How a tenant is found. ``header`` is lower case with dashes; ``claim`` for jwt, ``scheme`` for api_key."""

    kind: Literal["header", "api_key", "jwt", "client_cert"]
    header: str
    claim: str = ""
    scheme: str = ""


class TopUp(Struct, frozen=True, kw_only=True):
    """Automatic purchase of credits: ``credits`` for ``price`` (major unit) once the balance falls under ``below``."""

    credits: Decimal
    price: Decimal
    below: Decimal


class Tax(Struct, frozen=True, kw_only=True):
    """What Stripe is told about taxes: whether prices contain them, whether it works them out, the kind of goods."""

    behavior: Literal["unspecified", "exclusive", "inclusive"] = "unspecified"
    automatic: bool = False
    code: str = ""


class Catalogue(Struct, frozen=True, kw_only=True):
    """Everything of one catalogue file, checked as a whole. The last route rule is the default rule."""

    metrics: dict[str, Metric]
    plans: dict[str, Plan]
    routes: tuple[RouteRule, ...]
    identity: tuple[IdentityRule, ...]
    user_header: str = ""  # names the user for user-scoped limits
    default_plan: str = ""  # plan of identified tenants nobody knows; empty: refused
    anonymous_plan: str = ""  # plan of requests without identity; empty: 401
    currency: str = "usd"
    currencies: tuple[str, ...] = ()  # others in which every price is given too
    tax: Tax = Tax()
    upgrade_url: str = ""
    alert_interval_s: int = 86_400  # at most one alert per limit and threshold in this time
    top_up: TopUp | None = None
