"""A tenant's plan with its overrides, as the snapshot that every process enforces.

Guarantees: what is not overridden is the plan's; every wrong key is named at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import structs

from sidecar.catalogue.model import Beyond, Catalogue, Limit, Plan
from sidecar.catalogue.overrides import changes_of, feature_fits, overridden, override_problems
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.errors import CatalogueInvalid, NotFound
from sidecar.nearest import nearest


def resolve(  # noqa: PLR0913  # one keyword for each column of a tenant
    catalogue: Catalogue,
    *,
    tenant: str,
    rev: int,
    plan: str,
    status: str,
    status_until_s: int,
    parent: str,
    anchor_s: int,
    shadow: bool,
    overrides: dict[str, Any],
    strict: bool = True,
) -> Snapshot:
    """Join plan and overrides. An unknown plan falls back to the catalogue's default plan.

    ``strict`` False leaves out overrides that do not fit, for tenants whose overrides outlived a change of catalogue
    or plan; strict, they raise CatalogueInvalid with every wrong key. NotFound when there is no plan to fall back to.
    """
    chosen = plan_of(catalogue, plan)
    problems = list(override_problems(catalogue, chosen, overrides))
    if problems and strict:
        raise CatalogueInvalid(problems)
    limits = changes_of(overrides, "limits")
    features = {name: value for name, value in changes_of(overrides, "features").items() if feature_fits(name, value)}
    return Snapshot(
        tenant=tenant,
        rev=rev,
        plan=chosen.name,
        status=status,
        status_until_s=status_until_s,
        parent=parent,
        anchor_s=anchor_s,
        interval_months=chosen.interval_months,
        features={**chosen.features, **features},
        forward=chosen.forward,
        shadow=shadow or chosen.shadow or overrides.get("shadow") is True,
        limits=tuple(
            rule(overridden(catalogue, limit, limits[limit.name]) if limit.name in limits else limit)
            for limit in chosen.limits
            if catalogue.metrics[limit.metric].kind == "sum"
        ),
    )


def plan_of(catalogue: Catalogue, plan: str) -> Plan:
    """The plan of that name, or the default plan."""
    chosen = catalogue.plans.get(plan) or catalogue.plans.get(catalogue.default_plan)
    if chosen is None:
        raise NotFound(f'there is no plan "{plan}"{nearest(plan, catalogue.plans)} and no default_plan; name a plan')
    return chosen


def plan_with(catalogue: Catalogue, plan: Plan, overrides: Mapping[str, Any]) -> Plan:
    """The plan with a tenant's own included amounts, as it is priced: other overrides change no price."""
    changes = changes_of(dict(overrides), "limits")
    limits = tuple(
        structs.replace(limit, included=overridden(catalogue, limit, changes[limit.name]).included)
        if limit.name in changes
        else limit
        for limit in plan.limits
    )
    return structs.replace(plan, limits=limits)


def rule(limit: Limit) -> LimitRule:
    """A limit as it is enforced: where it stops, and what happens beyond the included amount."""
    return LimitRule(
        name=limit.name,
        metric=limit.metric,
        period=limit.period,
        scope=limit.scope,
        routes=limit.routes,
        included=limit.included,
        stop=_stop(limit),
        beyond=_beyond(limit),
        grace_s=limit.grace_s if limit.cap == "soft" else 0,
        on_outage=limit.on_outage,
        outage_units=limit.outage_units,
        shadow=limit.shadow,
    )


def _stop(limit: Limit) -> int | None:
    if limit.included is None:
        return None
    if limit.cap == "hard":
        return limit.included
    if limit.ceiling is not None:
        return limit.ceiling
    if limit.buffer_percent is not None:
        return limit.included * (100 + limit.buffer_percent) // 100
    # A soft cap with nothing beyond it stops like a hard one.
    return limit.included if _beyond(limit) == "deny" else None


def _beyond(limit: Limit) -> Beyond:
    if limit.cap == "hard" or limit.included is None:
        return "deny"
    if limit.overage is not None:
        return "bill"
    if limit.credits:
        return "credits"
    return "grace" if limit.grace_s else "deny"
