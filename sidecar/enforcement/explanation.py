"""The reasoning behind a decision, for people: what a request costs, and what each limit says to it.

Guarantees: status and reason are found by the very rules that decide (verdict.py). Amounts are exact decimals in whole
            units, times are unix seconds.
Gives up:   what Redis would say to a request for a lease: such a limit "asks Redis", and counts as allowing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from sidecar.catalogue.amount import to_decimal
from sidecar.enforcement import verdict
from sidecar.enforcement.verdict import Denial, Findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.catalogue.model import Catalogue, RouteRule
    from sidecar.catalogue.snapshot import LimitRule
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.decision import Decision
    from sidecar.enforcement.limit_state import LimitState

Checked = tuple["Account", "LimitState", int, "Denial | int | str"]


def explain(
    account: Account, charge: Charge, checked: Sequence[Checked], wall_ms: int, catalogue: Catalogue
) -> dict[str, object]:
    """Everything that a decision at this moment would look at, in its order."""
    findings = Findings(account, charge, wall_ms)
    for one in checked:
        findings.add(*one)
    if findings.denials and not account.contract.shadow:
        decision = verdict.deny(account, findings.denials, wall_ms, catalogue)
    else:
        decision = verdict.allow(account, charge, findings.mark, wall_ms)
    contract = account.contract
    return {
        **_said(decision, charge.route),
        "tenant": account.tenant,
        "plan": contract.plan,
        "tenant_status": contract.status,
        "revision": account.rev,
        "shadow": contract.shadow,
        "provisional": account.provisional,
        "parent": account.parent.tenant if account.parent is not None else "",
        "costs": {metric: _decimal(units, metric, catalogue) for metric, units in charge.route.costs.items()},
        "features_missing": list(charge.features_missing),
        "limits": [
            {
                **_limit(owner, state, catalogue),
                "cost": _decimal(units, state.rule.metric, catalogue),
                "outcome": _outcome(found),
            }
            for owner, state, units, found in checked
        ],
    }


def refused(decision: Decision, route: RouteRule) -> dict[str, object]:
    """The reasoning where nobody is found whose limits could be looked at."""
    return {**_said(decision, route), "limits": []}


def limits(account: Account, catalogue: Catalogue, now_s: int) -> dict[str, object]:
    """A tenant's limits: each in its current period, those with a scope once for each counter that is known here."""
    contract = account.contract
    states = [state for state in account.limits.values() if state.period.start_s <= now_s < state.period.end_s]
    found = []
    for rule in contract.limits:
        known = [_limit(account, state, catalogue) for state in states if state.rule.name == rule.name]
        found += known or [_unused(account, rule, catalogue)]
    return {
        "tenant": account.tenant,
        "plan": contract.plan,
        "tenant_status": contract.status,
        "revision": account.rev,
        "provisional": account.provisional,
        "features": dict(contract.features),
        "limits": found,
    }


def _said(decision: Decision, route: RouteRule) -> dict[str, object]:
    return {
        "allow": decision.allow,
        "status": decision.status,
        "reason": decision.reason,
        "quota_status": decision.quota_status,
        "retry_after": decision.retry_after_s,
        "violated": list(decision.violated),
        "route": route.name,
    }


def _rule(owner: Account, rule: LimitRule, catalogue: Catalogue) -> dict[str, object]:
    return {
        "limit": rule.name,
        "tenant": owner.tenant,
        "metric": rule.metric,
        "scope": rule.scope,
        "period": rule.period,
        "included": _decimal(rule.included, rule.metric, catalogue),
        "stop": _decimal(rule.stop, rule.metric, catalogue),
        "beyond": rule.beyond,
        "on_outage": rule.on_outage,
        "shadow": rule.shadow,
    }


def _unused(owner: Account, rule: LimitRule, catalogue: Catalogue) -> dict[str, object]:
    """A limit of a scope of which this worker has seen no key, user or route yet."""
    return {**_rule(owner, rule, catalogue), "used": None, "confirmed": False}


def _limit(owner: Account, state: LimitState, catalogue: Catalogue) -> dict[str, object]:
    period = state.period
    metric = period.rule.metric
    return {
        **_rule(owner, period.rule, catalogue),
        "limit": period.id,
        "period_start": period.start_s,
        "period_end": period.end_s,
        "used": _decimal(state.used, metric, catalogue),
        "confirmed": state.known,
        "lease_left": _decimal(state.left, metric, catalogue) if period.leased else None,
        "held_elsewhere": _decimal(state.lease.held_elsewhere, metric, catalogue),
    }


def _decimal(units: int | None, metric: str, catalogue: Catalogue) -> Decimal | None:
    if units is None:
        return None
    known = catalogue.metrics.get(metric)
    return to_decimal(units, known.scale if known is not None else 0)


def _outcome(found: Denial | int | str) -> str:
    if isinstance(found, Denial):
        return found.reason
    return "asks Redis" if isinstance(found, str) else verdict.STATUS_NAMES[found]
