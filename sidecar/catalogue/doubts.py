"""What is allowed in a catalogue and is probably not meant: told by `sidecar check`, refused by nobody.

A catalogue in force has to stay readable, and an override may give a single tenant more than its plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.catalogue.amount import format_amount
from sidecar.catalogue.model import Catalogue, Plan, RouteRule
from sidecar.catalogue.resolve import rule
from sidecar.catalogue.snapshot import LimitRule


def doubts(catalogue: Catalogue) -> list[str]:
    """Routes that cost more than a whole limit, so that no request on them is ever allowed under that plan."""
    found = []
    for route in catalogue.routes:
        refusing = {plan.name: list(_refusing(catalogue, plan, route)) for plan in catalogue.plans.values()}
        if refusing and all(refusing.values()):
            found.append(f"route {route.name}: no plan can ever admit it: {_reasons(refusing)}")
        elif any(refusing.values()):
            found.append(f"route {route.name}: never admitted under {_reasons(refusing)}")
    return found


def _refusing(catalogue: Catalogue, plan: Plan, route: RouteRule) -> Iterator[str]:
    """The limits of a plan that one request on a route exceeds alone.

    A plan that leaves the route out on purpose says so: by a feature it does not have, or by a limit of 0.
    """
    if plan.shadow or any(not plan.features.get(feature) for feature in route.requires):
        return
    for limit in plan.limits:
        metric = catalogue.metrics[limit.metric]
        enforced = rule(limit)
        cost = route.costs.get(limit.metric, 0)
        if metric.kind == "sum" and _applies(enforced, route) and enforced.stop and cost > enforced.stop:
            cost_text, stop_text = (format_amount(units, metric.scale) for units in (cost, enforced.stop))
            yield f"it costs {cost_text} {limit.metric}, limit {limit.name} stops at {stop_text}"


def _applies(limit: LimitRule, route: RouteRule) -> bool:
    return not limit.shadow and (not limit.routes or route.name in limit.routes)


def _reasons(refusing: dict[str, list[str]]) -> str:
    return "; ".join(f"plan {plan}: {', '.join(reasons)}" for plan, reasons in refusing.items() if reasons)
