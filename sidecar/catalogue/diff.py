"""What changes between two catalogues, in lines for people: ``+`` added, ``-`` removed, ``~`` changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from sidecar.catalogue.amount import format_amount
from sidecar.catalogue.model import Catalogue, Limit, Metric, Overage, Plan, RouteRule

_AMOUNTS = ("included", "ceiling", "outage_units")


def diff(old: Catalogue, new: Catalogue) -> list[str]:
    """All differences, by section; empty when the two are the same."""
    metrics = {**old.metrics, **new.metrics}
    lines = list(_named("metric", old.metrics, new.metrics, metrics))
    for name in _union(old.plans, new.plans):
        before, after = old.plans.get(name), new.plans.get(name)
        if before is None or after is None:
            lines.append(f"{'+' if before is None else '-'} plan {name}")
        else:
            lines.extend(_plan(before, after, metrics))
    lines.extend(
        _named("route", {rule.name: rule for rule in old.routes}, {rule.name: rule for rule in new.routes}, metrics)
    )
    kept = [rule.name for rule in new.routes if rule.name in {rule.name for rule in old.routes}]
    if kept != [rule.name for rule in old.routes if rule.name in set(kept)]:
        lines.append(f"~ routes: order is now {', '.join(kept)}")
    if old.identity != new.identity:
        lines.append(f"~ identity: {_identity(old)} -> {_identity(new)}")
    lines.extend(_fields("catalogue", old, new, metrics, skip=("metrics", "plans", "routes", "identity")))
    return lines


def _plan(old: Plan, new: Plan, metrics: Mapping[str, Metric]) -> Iterator[str]:
    what = f"plan {new.name}"
    yield from _fields(what, old, new, metrics, skip=("limits",))
    yield from _named(
        f"{what}: limit",
        {limit.name: limit for limit in old.limits},
        {limit.name: limit for limit in new.limits},
        metrics,
    )


def _named(
    noun: str, old: Mapping[str, msgspec.Struct], new: Mapping[str, msgspec.Struct], metrics: Mapping[str, Metric]
) -> Iterator[str]:
    for name in _union(old, new):
        before, after = old.get(name), new.get(name)
        if before is None or after is None:
            sign, one = ("+", after) if before is None else ("-", before)
            yield f"{sign} {noun} {name}{_summary(one, metrics)}"
        else:
            yield from _fields(f"{noun} {name}", before, after, metrics)


def _fields(
    what: str, old: msgspec.Struct, new: msgspec.Struct, metrics: Mapping[str, Metric], skip: tuple[str, ...] = ()
) -> Iterator[str]:
    for field in new.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if field not in skip and before != after:
            yield f"~ {what}: {field} {_text(field, before, old, metrics)} -> {_text(field, after, new, metrics)}"


def _text(field: str, value: Any, owner: object, metrics: Mapping[str, Metric]) -> str:
    if isinstance(owner, Limit) and field in _AMOUNTS:
        return "unlimited" if value is None else format_amount(value, metrics[owner.metric].scale)
    if isinstance(value, Overage) and isinstance(owner, Limit):
        prices = "".join(f", {other:f} {currency}" for currency, other in value.prices.items())
        return f"{value.price:f}{prices} per {format_amount(value.per, metrics[owner.metric].scale)}"
    if isinstance(value, dict):
        scales = {name: metrics[name].scale for name in value if name in metrics} if field == "costs" else {}
        parts = (
            f"{key}: {format_amount(part, scales[key]) if key in scales else _plain(part)}"
            for key, part in value.items()
        )
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, msgspec.Struct):
        return _text(field, msgspec.structs.asdict(value), owner, metrics)
    if isinstance(value, tuple):
        return "[" + ", ".join(str(part) for part in value) + "]"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)


def _summary(one: msgspec.Struct | None, metrics: Mapping[str, Metric]) -> str:
    if isinstance(one, Limit):
        included = _text("included", one.included, one, metrics)
        return f" ({one.cap}, {included} {one.metric} per {one.period})"
    if isinstance(one, RouteRule):
        methods = ",".join(one.methods)
        return (
            f" ({methods}{' ' if methods else ''}{one.host}{one.path}, costs {_text('costs', one.costs, one, metrics)})"
        )
    return ""


def _identity(catalogue: Catalogue) -> str:
    rules = (f"{rule.kind} {rule.header}{f' {rule.claim}' if rule.claim else ''}" for rule in catalogue.identity)
    return ", ".join(rules) or "none"


def _union(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return [*old, *(name for name in new if name not in old)]
