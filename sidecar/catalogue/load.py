"""Catalogue files: YAML text in, a checked Catalogue out, or every error at once.

Guarantees: a catalogue that is returned is whole: every name it refers to exists, every route can be reached, every
            limit is fed by something. A text that is refused comes back with all its problems, each with its line and
            with what would be right; nothing of it is used.
"""

from __future__ import annotations

import re
from pathlib import Path

from sidecar.catalogue.load_limits import LimitReader
from sidecar.catalogue.load_metrics import read_identity, read_metrics
from sidecar.catalogue.load_money import read_currencies, read_tax
from sidecar.catalogue.load_plans import Plans, read_plans
from sidecar.catalogue.load_routes import read_routes, route_names
from sidecar.catalogue.model import Catalogue, IdentityRule, Limit, Metric, RouteRule, TopUp
from sidecar.catalogue.pricing import minor_places
from sidecar.catalogue.scalars import duration_s, header_name, money, percents
from sidecar.catalogue.yaml_reader import Reader, Value
from sidecar.errors import CatalogueInvalid

TOP_KEYS = (
    "metrics",
    "plans",
    "routes",
    "default",
    "identity",
    "user_header",
    "default_plan",
    "anonymous_plan",
    "currency",
    "currencies",
    "tax",
    "upgrade_url",
    "alerts",
    "alert_interval",
    "top_up",
)
EXTENSION_PREFIX = "x-"
CREDIT_PLACES = 6


def read(path: str | Path) -> Catalogue:
    """Read and check one catalogue file; raises CatalogueInvalid with all problems."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise CatalogueInvalid([f"{path}:1: cannot be read, {error.strerror}; name a readable file"]) from error
    except UnicodeDecodeError as error:
        raise CatalogueInvalid([f"{path}:1: byte {error.start} is no UTF-8; save the file as UTF-8"]) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Catalogue:
    """Check one catalogue text; raises CatalogueInvalid with all problems, each "name:line: ...; ..."."""
    reader = Reader(name)
    root = reader.document(text)
    catalogue = _catalogue(reader, root) if root else None
    if catalogue is None or reader.problems:
        raise CatalogueInvalid(reader.problems)
    return catalogue


def _catalogue(reader: Reader, root: Value) -> Catalogue:
    extensions = tuple(key for key in Reader(reader.name).mapping(root) if key.startswith(EXTENSION_PREFIX))
    keys = reader.section(root, (*TOP_KEYS, *extensions))
    currencies = read_currencies(reader, keys.get("currency"), keys.get("currencies"))
    metrics = read_metrics(reader, keys.get("metrics"))
    if not metrics:
        reader.problem(
            keys.get("metrics", root), "there are no metrics", 'name what is counted, like "metrics: {api_calls: {}}"'
        )
    limits = LimitReader(reader, metrics, route_names(reader, keys.get("routes")))
    alerts = percents(reader, keys["alerts"]) if "alerts" in keys else ()
    plans = read_plans(reader, keys.get("plans"), limits, alerts, currencies)
    if not plans.plans:
        reader.problem(
            keys.get("plans", root),
            "there are no plans",
            'write at least one, like "plans: {free: {limits: {api_calls: 1000}}}"',
        )
    routes = read_routes(reader, keys.get("routes"), keys.get("default"), metrics, plans.features)
    identity = read_identity(reader, keys.get("identity"))
    anonymous_plan = _plan(reader, keys.get("anonymous_plan"), plans)
    user_header = header_name(reader, keys.get("user_header"))
    if not anonymous_plan and not reader.items(keys.get("identity")):
        reader.problem(
            keys.get("identity", root),
            "nothing identifies a tenant",
            'add "identity: [{header: x-tenant-id}]" or an anonymous_plan',
        )
    for plan in plans.plans.values():
        for limit in plan.limits:
            value = plans.limit_values[plan.name, limit.name]
            _check_fed(reader, value, limit, metrics[limit.metric], routes)
            _check_scope(reader, value, limit, identity, user_header)
        _check_billed_once(reader, plans, plan.name)
    return Catalogue(
        metrics=metrics,
        plans=plans.plans,
        routes=routes,
        identity=identity,
        user_header=user_header,
        default_plan=_plan(reader, keys.get("default_plan"), plans),
        anonymous_plan=anonymous_plan,
        currency=currencies.own,
        currencies=currencies.others,
        tax=read_tax(reader, keys.get("tax")),
        upgrade_url=_upgrade_url(reader, keys.get("upgrade_url")),
        alert_interval_s=duration_s(reader, keys.get("alert_interval"), 86_400),
        top_up=_top_up(reader, keys.get("top_up"), minor_places(currencies.own)),
    )


def _plan(reader: Reader, value: Value | None, plans: Plans) -> str:
    name = reader.text(value)
    if value is not None and name and name not in plans.plans:
        reader.unknown(value, "plan", name, plans.plans)
    return name


def _upgrade_url(reader: Reader, value: Value | None) -> str:
    url = reader.text(value)
    if value is not None and not re.fullmatch(r"(https?:/)?/[!-~]{0,2000}", url):
        reader.problem(
            value, f'"{url[:80]}" is no address', 'write it like "https://example.com/upgrade" or "/upgrade"'
        )
    return url


def _top_up(reader: Reader, value: Value | None, places: int) -> TopUp | None:
    if value is None:
        return None
    keys = reader.section(value, ("credits", "price", "below"))
    for key in ("credits", "price", "below"):
        if key not in keys:
            reader.problem(value, f"{key} is missing", 'write it like {credits: 500, price: "20.00", below: 50}')
    bought = money(reader, keys.get("credits"), CREDIT_PLACES)
    if "credits" in keys and bought == 0:
        reader.problem(keys["credits"], "buys nothing", "1 or more credits")
    return TopUp(
        credits=bought,
        price=money(reader, keys.get("price"), places),
        below=money(reader, keys.get("below"), CREDIT_PLACES),
    )


def _check_fed(reader: Reader, value: Value, limit: Limit, metric: Metric, routes: tuple[RouteRule, ...]) -> None:
    """A sum metric grows by route costs or by reports; a limit on one that does neither would never act."""
    if metric.kind == "level" or (metric.reported and not limit.routes):
        return
    feeding = [
        rule for rule in routes if rule.costs.get(limit.metric) and (not limit.routes or rule.name in limit.routes)
    ]
    if not feeding:
        whose = f"none of the routes {', '.join(limit.routes)}" if limit.routes else "no route"
        reader.problem(
            value,
            f"nothing feeds this limit: {whose} costs {limit.metric}",
            f'give a route "costs: {{{limit.metric}: 1}}", or set "reported: true" on the metric',
        )


def _check_scope(
    reader: Reader, value: Value, limit: Limit, identity: tuple[IdentityRule, ...], user_header: str
) -> None:
    if limit.scope == "user" and not user_header:
        reader.problem(
            value, "a limit of each user, and nothing names the user", 'add "user_header: x-user-id" at the top'
        )
    if limit.scope == "key" and not any(rule.kind == "api_key" for rule in identity):
        reader.problem(
            value, "a limit of each key, and no identity rule reads one", 'add "- api_key: x-api-key" to identity'
        )


def _check_billed_once(reader: Reader, plans: Plans, plan: str) -> None:
    billed: dict[str, str] = {}
    for limit in plans.plans[plan].limits:
        if limit.overage is None:
            continue
        other = billed.setdefault(limit.metric, limit.name)
        if other != limit.name:
            reader.problem(
                plans.limit_values[plan, limit.name],
                f'bills {limit.metric} a second time, "{other}" does already',
                "give only one of them an overage",
            )
