"""The reasoning behind a decision, for people: what a request costs, and what each limit says to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement import verdict
from sidecar.enforcement.verdict import Denial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.catalogue.model import RouteRule
    from sidecar.enforcement.account import Account, Charge
    from sidecar.enforcement.lease import LimitState

Checked = tuple["Account", "LimitState", int, "Denial | int | str"]


def explain(
    account: Account, charge: Charge, route: RouteRule, checked: Sequence[Checked], wall_s: int
) -> dict[str, object]:
    """Everything that a decision at this moment would look at, in its order; amounts in base units, times in unix s."""
    status = verdict.standing(account, wall_s)
    reason, code = "allowed", 200
    if isinstance(status, Denial):
        reason, code = status.reason, status.status
    elif charge.features_missing:
        reason, code = "feature_missing", 403
    else:
        for _, state, _, found in checked:
            if isinstance(found, Denial) and not state.rule.shadow:
                reason, code = found.reason, found.status
                break
    snapshot = account.snapshot
    allow = reason == "allowed" or snapshot.shadow
    return {
        "allow": allow,
        "status": 200 if allow else code,
        "reason": reason,
        "tenant": account.tenant,
        "plan": snapshot.plan,
        "tenant_status": snapshot.status,
        "revision": snapshot.rev,
        "shadow": snapshot.shadow,
        "provisional": account.provisional,
        "parent": snapshot.parent,
        "route": route.name,
        "costs": dict(route.costs),
        "features_missing": list(charge.features_missing),
        "limits": [
            _limit(owner, state) | {"cost": units, "outcome": _outcome(found)} for owner, state, units, found in checked
        ],
    }


def limits(account: Account) -> dict[str, object]:
    """What is known here of a tenant's limits, without a request."""
    snapshot = account.snapshot
    return {
        "tenant": account.tenant,
        "plan": snapshot.plan,
        "tenant_status": snapshot.status,
        "revision": snapshot.rev,
        "features": dict(snapshot.features),
        "limits": [_limit(account, state) for state in account.limits.values()],
    }


def _limit(owner: Account, state: LimitState) -> dict[str, object]:
    rule = state.rule
    return {
        "limit": state.id,
        "tenant": owner.tenant,
        "metric": rule.metric,
        "period": rule.period,
        "period_start": state.start_s,
        "period_end": state.end_s,
        "included": rule.included,
        "stop": state.stop,
        "beyond": rule.beyond,
        "on_outage": rule.on_outage,
        "shadow": rule.shadow,
        "used": state.used,
        "confirmed": state.known,
        "lease_left": state.left if state.leased else None,
        "held_elsewhere": state.held_elsewhere,
    }


def _outcome(found: Denial | int | str) -> str:
    if isinstance(found, Denial):
        return found.reason
    return "asks for a lease" if isinstance(found, str) else verdict.STATUS_NAMES[found]
