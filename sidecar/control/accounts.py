"""What operators change about a tenant, checked against the catalogue in force before the ledger takes it.

Guarantees: a tenant is never put on a plan that does not exist, nor given an override that does not fit; a change made
            meanwhile by somebody else is a Conflict, never lost.
"""

from __future__ import annotations

import copy
from typing import Any

from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.overrides import override_problems
from sidecar.errors import CatalogueInvalid, NotFound
from sidecar.ledger import tenants
from sidecar.ledger.tenants import TenantRow
from sidecar.ledger.transaction import Transaction
from sidecar.nearest import nearest


def known_plan(catalogue: Catalogue, plan: str) -> str:
    """The plan's name, if the catalogue has it; NotFound names the nearest one."""
    if plan not in catalogue.plans:
        names = ", ".join(catalogue.plans)
        raise NotFound(f'there is no plan "{plan}"{nearest(plan, catalogue.plans)}; the catalogue has {names}')
    return plan


async def override(
    tx: Transaction, catalogue: Catalogue, tenant: str, path: str, value: Any, *, actor: str, clear: bool = False
) -> TenantRow:
    """Set (or ``clear``) one override by its path: ``limits.api_calls``, ``features.sso``, ``shadow``."""
    row = await tenants.show(tx, tenant)
    wanted = changed(row.overrides, path.split("."), value, clear=clear)
    plan = catalogue.plans.get(row.plan) or catalogue.plans.get(catalogue.default_plan)
    problems = list(override_problems(catalogue, plan, wanted)) if plan is not None and not clear else []
    if problems:
        raise CatalogueInvalid(problems)
    top = path.partition(".")[0]
    return await tenants.override(tx, tenant, top, wanted.get(top), actor=actor, rev=row.rev)


def changed(overrides: dict[str, Any], path: list[str], value: Any, *, clear: bool) -> dict[str, Any]:
    """A copy of the overrides with one value set or taken away; an object that became empty goes too."""
    result = copy.deepcopy(overrides)
    trail = [result]
    for name in path[:-1]:
        below = trail[-1].get(name)
        if not isinstance(below, dict):
            # A limit overridden short, by its amount alone, becomes the long form before a part of it is set.
            below = {} if below is None else {"included": below}
            trail[-1][name] = below
        trail.append(below)
    if clear:
        trail[-1].pop(path[-1], None)
        for depth in range(len(trail) - 1, 0, -1):
            if not trail[depth]:
                del trail[depth - 1][path[depth - 1]]
    else:
        trail[-1][path[-1]] = value
    return result
