"""The decision rules: what one charge may do at one moment. Pure; nothing is spent here.

Order: status of the tenant -> features -> room in every limit touched. A denial is a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement.decision import Decision, LimitView
from sidecar.enforcement.limit_period import UNBOUNDED

if TYPE_CHECKING:
    from sidecar.catalogue.model import Catalogue
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.limit_state import LimitState

CONTENDED_RETRY_S = 1
OUTAGE_RETRY_S = 2
FINE, NEAR, OVER, GRACE, DEGRADED, SHADOW = range(6)
STATUS_NAMES = ("ok", "near", "over", "grace", "degraded", "shadow")
SHORT = "short"  # a lease has to be asked for


class Denial:
    """Why one check fails; becomes a Decision, or only a mark where a shadow lets the request through."""

    __slots__ = ("cost", "reason", "retry_after_s", "state", "status")

    def __init__(
        self, status: int, reason: str, state: LimitState | None = None, retry_after_s: int = 0, cost: int = 0
    ) -> None:
        self.status = status
        self.reason = reason
        self.state = state
        self.retry_after_s = retry_after_s
        self.cost = cost

    @property
    def lasting(self) -> tuple[bool, bool, int]:
        """How long it lasts, to compare: what no waiting mends, then what never fits, then what comes back latest."""
        return self.status != 429, self.reason == "cost_too_large", self.retry_after_s  # noqa: PLR2004 - HTTP


def standing(account: Account, wall_s: int) -> Denial | int:
    """Whether the tenant may use the API at all: a Denial (402), or FINE or GRACE."""
    contract = account.contract
    status, until_s = contract.status, contract.status_until_s
    if status == "active" or (status == "trialing" and (not until_s or wall_s < until_s)):
        return FINE
    if status == "past_due" and wall_s < until_s:
        return GRACE
    return Denial(402, "payment_required")


def counted(state: LimitState, units: int, wall_ms: int) -> Denial | int:
    """A soft cap, or the soft part of a leased limit: FINE, NEAR, OVER, GRACE, or a Denial."""
    rule = state.rule
    included = rule.included
    if included is None:
        return FINE
    used = state.used + units
    if used <= included:
        return NEAR if used >= state.period.near_at else FINE
    if rule.beyond == "bill":
        return OVER
    if rule.grace_s and (not state.over_ms or wall_ms < state.over_ms + rule.grace_s * 1000):
        return GRACE
    reason = "grace_over" if rule.grace_s else "limit_reached"
    return Denial(429, reason, state, max(1, state.period.end_s - wall_ms // 1000))


def leased(state: LimitState, units: int, now_ms: int, wall_ms: int, *, away: bool) -> Denial | int | str:
    """A limit whose lease does not cover ``units``: SHORT to ask Redis, a Denial, or DEGRADED by its outage policy."""
    stop = state.period.stop
    if stop and units > stop:
        return Denial(429, "cost_too_large", state, cost=units)
    if stop == 0 or state.spent_out(units):
        return Denial(429, "limit_reached", state, max(1, state.period.end_s - wall_ms // 1000))
    if away:
        return in_outage(state, units)
    return contended(state) if state.hold_on(units, now_ms) else SHORT


def in_outage(state: LimitState, units: int) -> Denial | int:
    """What the limit's outage policy says to units that no lease covers: DEGRADED or a Denial."""
    return DEGRADED if units <= outage_room(state) else Denial(503, "store_unavailable", state, OUTAGE_RETRY_S)


def outage_room(state: LimitState) -> int:
    """Units that the limit's outage policy still lets through; below 0 where it closes the limit."""
    rule = state.rule
    if rule.on_outage == "open":
        return UNBOUNDED
    return rule.outage_units - state.outage_used if rule.on_outage == "bounded" else -1


def contended(state: LimitState) -> Denial:
    """Units are held elsewhere and may come back: worth another try in a second."""
    return Denial(429, "limit_contended", state, CONTENDED_RETRY_S)


def headroom(state: LimitState, wall_ms: int, *, away: bool) -> Denial | int | str:
    """Whether a leased limit has a unit left in all, without wanting one: SHORT while Redis has never said."""
    if not state.heard:
        return in_outage(state, 0) if away else SHORT
    stop = state.period.stop
    if stop is not None and state.used >= stop:  # what was heard once can only have grown
        return Denial(429, "limit_reached", state, max(1, state.period.end_s - wall_ms // 1000))
    return FINE


class Findings:
    """What the checks of one charge found together: denials, leases to ask for, limits let through by outage policy."""

    __slots__ = ("denials", "mark", "short", "unleased")

    def __init__(self, account: Account, charge: Charge, wall_ms: int) -> None:
        self.denials: list[Denial] = []
        self.short: list[tuple[Account, LimitState, int]] = []
        self.unleased: set[LimitState] = set()
        self.mark = FINE
        status = standing(account, wall_ms // 1000)
        if isinstance(status, Denial):
            self.denials.append(status)
        else:
            self.mark = status
        if charge.features_missing and not self.denials:
            self.denials.append(Denial(403, "feature_missing"))
        if self.denials and account.contract.shadow:
            self.mark = SHADOW

    def add(self, owner: Account, state: LimitState, units: int, found: Denial | int | str) -> None:
        """Take note of one check."""
        if isinstance(found, Denial):
            if state.rule.shadow or owner.contract.shadow:
                self.mark = SHADOW
            else:
                self.denials.append(found)
                # Where a shadow lets the request through all the same, no lease covers what it spends.
                self.unleased.add(state)
        elif isinstance(found, str):
            self.short.append((owner, state, units if state.period.leased else 0))
        else:
            self.mark = max(self.mark, found)
            if found == DEGRADED:
                self.unleased.add(state)


def allow(account: Account, charge: Charge, standing_mark: int, wall_ms: int) -> Decision:
    """The answer to a request that was just spent; describes the tightest limit."""
    mark = standing_mark
    tightest: LimitState | None = None
    remaining, quota = 0, 0
    for _, state, _ in charge.limits:
        cap = state.period.quota
        if cap is None:
            continue
        left = cap - state.used
        if tightest is None or left * quota < remaining * cap:
            tightest, remaining, quota = state, left, cap
    if tightest is None:
        return allowance(account, mark, None, 0, 0)
    return allowance(account, mark, tightest, max(0, remaining), max(0, tightest.period.end_s - wall_ms // 1000))


def allowance(account: Account, mark: int, tightest: LimitState | None, remaining: int, reset_s: int) -> Decision:
    """The answer to an allowed request, by the numbers of its tightest limit when there is one."""
    return Decision(
        True,  # noqa: FBT003 - the first field of the hot path's answer
        200,
        "shadow" if mark == SHADOW else "allowed",
        STATUS_NAMES[mark],
        account.tenant,
        account.contract.plan,
        account.contract.forwarded,
        _shown(tightest, remaining, reset_s) if tightest is not None else None,
    )


def _shown(state: LimitState, remaining: int, reset_s: int) -> LimitView:
    period = state.period
    return LimitView(period.rule.name, period.quota, state.used, remaining, period.end_s - period.start_s, reset_s)


def deny(account: Account, denials: list[Denial], wall_ms: int, catalogue: Catalogue) -> Decision:
    """The answer to a request that is refused: the denial that lasts longest gives status, reason and numbers."""
    first = max(denials, key=lambda denial: denial.lasting)
    return Decision(
        allow=False,
        status=first.status,
        reason=first.reason,
        quota_status="denied",
        tenant=account.tenant,
        plan=account.contract.plan,
        features=(),
        limit=view(first.state, wall_ms, catalogue, first.cost) if first.state is not None else None,
        violated=tuple(denial.state.rule.name for denial in denials if denial.state is not None),
        retry_after_s=first.retry_after_s,
        upgrade_url=catalogue.upgrade_url,
    )


def view(state: LimitState, wall_ms: int, catalogue: Catalogue, cost: int = 0) -> LimitView:
    """The numbers of one limit, with the metric's scale, for headers and bodies."""
    period = state.period
    metric = catalogue.metrics.get(period.rule.metric)
    cap = period.quota
    remaining = 0 if cap is None else max(0, cap - state.used)
    return LimitView(
        period.rule.name,
        cap,
        state.used,
        remaining,
        period.end_s - period.start_s,
        max(0, period.end_s - wall_ms // 1000),
        metric.scale if metric is not None else 0,
        cost,
    )
