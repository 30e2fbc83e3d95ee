"""A tenant in memory: its snapshot, the limits in their current periods, its windows, and ready-made charges.

Guarantees: what a request costs is worked out once per (route, key, user) and hour, not per request.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from sidecar.catalogue.period import bounds
from sidecar.enforcement.charge import Charge
from sidecar.enforcement.contract import contract
from sidecar.enforcement.keyed import NONE, Few, Keyed, Many
from sidecar.enforcement.limit_period import limit_period
from sidecar.enforcement.limit_state import LimitState
from sidecar.enforcement.spent import Spent, noted
from sidecar.enforcement.succession import goes_on, holding, lapse, look_ahead, settled, taken_ahead
from sidecar.memo import remember, shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.catalogue.model import RouteRule
    from sidecar.catalogue.snapshot import LimitRule, Snapshot
    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.usage.window import Window

CHARGES_MAX = 512
ANCESTORS_MAX = 16
SWEEP_LEAST = 256
# Limits of users and keys that Redis has not confirmed; beyond it units may stay set aside until the period ends.
UNCONFIRMED_MAX = 4096
# Limits that departed and are not reported yet, as in a long outage; of those beyond it the same is true.
DEPARTED_MAX = 1024

SHARED_MAX = 4_096
_anchors: dict[int, int] = {}  # those of one second share its number


class Account:
    """Everything this writer knows of one tenant.

    ``provisional``: Redis could not be asked who it is. ``withdrawn``: nobody knows it any more; the account stays,
    with its windows, until they are in the ledger, so that no window is ever counted in two places. ``turn`` changes
    with whatever makes the fast path look closely again.
    """

    __slots__ = (
        "_small_own",
        "_sweep_at",
        "_windows",
        "anchor_s",
        "contract",
        "departed",
        "edition",
        "exchange",
        "has_children",
        "limits",
        "parent",
        "provisional",
        "rests_until_ms",
        "rev",
        "tenant",
        "touched",
        "turn",
        "withdrawn",
    )

    def __init__(self, snapshot: Snapshot, exchange: ShardExchange, parent: Account | None = None) -> None:
        self.tenant = snapshot.tenant
        self.exchange = exchange
        self.parent = parent
        self.provisional = False
        self.withdrawn = False
        self.touched = False
        self.edition = 0
        self.turn = 0
        self.rests_until_ms = 0
        self.has_children = False
        self.limits: Keyed[LimitState] = NONE
        self.departed: tuple[LimitState, ...] = ()
        self._sweep_at = SWEEP_LEAST
        self._small_own: Keyed[Spent] = NONE
        self._windows: Window | Keyed[Window] = NONE
        self.anchor_s = snapshot.anchor_s
        self.contract = contract(snapshot)
        self.adopt(snapshot)

    @property
    def windows(self) -> Keyed[Window]:
        """What it counts in. Most tenants have one window, which is kept without a container."""
        held = self._windows
        return held if isinstance(held, (Few, Many)) else Few((held,))

    @windows.setter
    def windows(self, windows: Keyed[Window]) -> None:
        self._windows = windows[0] if isinstance(windows, Few) and len(windows) == 1 else windows

    def adopt(self, snapshot: Snapshot) -> bool:
        """Put another snapshot in force. A lease goes on unless its cap was lowered or its period changed.

        Returns whether Redis has to hear of it soon: units go back, or what it said refuses or marks requests. All else
        can wait for the tenant's next request, or a changed plan would be a report of each of its tenants.
        """
        billing = snapshot.anchor_s, snapshot.interval_months
        rebased = billing != (self.anchor_s, self.contract.interval_months)
        self.rev = snapshot.rev
        self.anchor_s = shared(_anchors, snapshot.anchor_s, SHARED_MAX)
        self.contract = contract(snapshot)
        self.drop_charges()
        rules = {rule.name: rule for rule in snapshot.limits}
        telling = False
        for state in list(self.limits.values()):
            rule = rules.get(state.rule.name)
            if rule is not None and (rebased or rule.period != state.rule.period) and not state.period.small:
                start_s, end_s = bounds(rule.period, state.period.start_s, *billing)
                # Redis keeps both under one key, which has to live as long as the new one.
                if start_s == state.period.start_s:
                    state.last(end_s)
            if rule is None or (rule.metric, rule.period, rule.scope) != _shape(state.rule):
                self._depart(state)
                continue
            stop = state.period.stop
            if not self._leased(rule) or rule.stop is None or (stop is not None and rule.stop < stop):
                telling = telling or state.left > 0
                state.forfeit()
            telling = telling or state.over_ms > 0 or state.spent_out(1)
            if rule != state.rule:
                self._drop_ahead(state)
            if rule.scope != "tenant" and state.forgettable(self.exchange.composed_ms):
                self._forget(state)
                continue
            state.follow(rule, leased=self._leased(rule))
        return telling

    def forfeit(self) -> None:
        """Give up every lease."""
        for state in self.limits.values():
            state.forfeit()

    def drop_charges(self) -> None:
        """Work every charge out anew, those of child tenants too: limits or windows they refer to are gone."""
        self.edition += 1
        self.turn += 1

    def charge(self, route: RouteRule, key_id: str, user: str, now_s: int) -> Charge:
        """What a request on ``route`` costs at ``now_s`` (unix s, wall), from the shard's memo or worked out anew."""
        lineage = tuple((one, one.edition) for one in self._ancestors()) if self.parent is not None else ()
        found = self.remembered(route, key_id, user, now_s)
        if found is not None and found.lineage == lineage:
            return found
        charge = Charge(route, lineage, (now_s - now_s % 3600) * 1000)
        charge.features_missing = tuple(name for name in route.requires if not self.contract.features.get(name))
        self._add(charge, route, key_id, user, now_s)
        for one in self._ancestors():
            one._add(charge, route, "", "", now_s)  # noqa: SLF001 - another account of this class
        charge.complete(self.edition)
        return remember(self.exchange.charges, (self, route.name, key_id, user), charge, CHARGES_MAX)

    def remembered(self, route: RouteRule, key_id: str, user: str, now_s: int) -> Charge | None:
        """The same from the memo alone, whatever parents changed since; None when it would have to be worked out."""
        found = self.exchange.charges.get((self, route.name, key_id, user))
        # A route rule merged for an ambiguous path carries the name of one of its parts: compare what it says as well.
        if (
            found is not None
            and found.edition == self.edition
            and found.since_ms <= now_s * 1000 < found.until_ms  # the wall clock may step back
            and (found.route is route or found.route == route)
        ):
            return found
        return None

    def renew(self, charge: Charge, now_s: int) -> bool:
        """Go on with a charge of this tenant alone of which only seconds or minutes ended; returns whether that is so.

        With each minute every tenant has one to be worked out, all in the same few milliseconds.
        """
        if charge.edition != self.edition or charge.lineage or not charge.until_ms <= now_s * 1000 < charge.lasts_ms:
            return False
        limits, charge.limits = charge.limits, []
        charge.until_ms = charge.lasts_ms
        for owner, former, units in limits:
            over = former.period.over(now_s)
            state = self._limit(former.rule, former.id.partition(":")[2], now_s) if over else former
            charge.limited(owner, state, units)
        charge.complete(self.edition)
        return True

    def _ancestors(self) -> Iterator[Account]:
        """Parent, its parent and so on; the ledger keeps families without cycles."""
        found = self.parent
        for _ in range(ANCESTORS_MAX):
            if found is None:
                return
            yield found
            found = found.parent

    def _add(self, charge: Charge, route: RouteRule, key_id: str, user: str, now_s: int) -> None:
        contract = self.contract
        if len(self.limits) >= self._sweep_at:
            self._sweep()  # before the charge refers to any of them
        within = charge.ends if contract.status_until_s > now_s else charge.begins
        within(contract.status_until_s)
        start_s, end_s = bounds("billing", now_s, self.anchor_s, contract.interval_months)
        charge.begins(start_s)
        charge.ends(end_s)
        for metric, units in route.costs.items():
            if units:
                charge.series.append((self, metric, units))
        for rule in contract.limits:
            cost = route.costs.get(rule.metric, 0)
            wanted = cost or (1 if rule.metric in route.headroom else 0)
            value = scope_value(rule, route, key_id, user)
            if not wanted or value is None:
                continue
            state = self._limit(rule, value, now_s)
            if not cost:
                state.own_lease().watched = True
            charge.limited(self, state, cost)
            if value and cost and not state.period.small:
                charge.series.append((self, state.period.series, cost))

    def current(self, now_s: int) -> list[LimitState]:
        """The tenant's own limits in the periods that hold ``now_s``; each key, user or route has its own besides."""
        return [self._limit(rule, "", now_s) for rule in self.contract.limits if rule.scope == "tenant"]

    def period(self, now_s: int) -> int:
        """Start of the billing period that holds ``now_s``, in unix seconds."""
        return bounds("billing", now_s, self.anchor_s, self.contract.interval_months)[0]

    def roll(self, now_s: int, now_ms: int, most: int) -> None:
        """Go on, in the current period, with limits of seconds and minutes that had a lease when theirs ended.

        So one message asks for the leases of all tenants in it, before each of them has to wait for its own. Of a
        tenant's users ``most`` go on with one message. What was not used lately does not (``now_ms``: monotonic).
        """
        ended = (state for state in self.limits.values() if state.period.over(now_s) and holding(state))
        for state in list(islice(ended, most)):
            if settled(state) and not goes_on(state, now_ms):
                lapse(state)
            else:
                self.go_on(state, now_s)

    def look_ahead(self, now_s: int, now_ms: int) -> None:
        """Want leases of the seconds and minutes that follow those being spent from, shortly before they begin."""
        look_ahead(self.limits.values(), self._small_own, now_s, now_ms)

    def go_on(self, state: LimitState, now_s: int) -> None:
        """Have the limit of the current period in place of one that ended."""
        self._limit(state.rule, state.id.partition(":")[2], now_s)

    def states(self) -> Iterator[LimitState]:
        """Every limit in its current period, and in the next one where a lease of that was asked for."""
        for state in self.limits.values():
            yield state
            if state.lease.ahead is not None:
                yield state.lease.ahead

    def _limit(self, rule: LimitRule, value: str, now_s: int) -> LimitState:
        limit_id = f"{rule.name}:{value}" if value else rule.name
        start_s, end_s = bounds(rule.period, now_s, self.anchor_s, self.contract.interval_months)
        state = self.limits.get(limit_id)
        if state is not None and state.period.start_s == start_s and state.period.end_s == end_s:
            return state
        period = limit_period(rule, limit_id, start_s, end_s, leased=self._leased(rule))
        fresh = (taken_ahead(state, period) if state is not None else None) or LimitState(period)
        if state is not None:
            fresh.succeed(state, self.exchange.composed_ms)
            self._depart(state, now_s)
        before = self._small_own.get((limit_id, start_s))
        if before is not None:
            fresh.own = before.own  # reported once more: whoever spent it may not have told yet
        self.limits = self.limits.put(fresh)
        return fresh

    def _sweep(self) -> None:
        """Forget scoped limits that nobody used for a while: users and keys come and go, a month is long."""
        now_ms = self.exchange.composed_ms
        unconfirmed = []
        for state in list(self.limits.values()):
            if not state.period.scoped or not state.unused(now_ms):
                continue
            if state.forgettable(now_ms):
                self._forget(state)
            else:
                unconfirmed.append(state)
        for state in unconfirmed[: max(0, len(unconfirmed) - UNCONFIRMED_MAX)]:
            self._forget(state)
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self.limits))
        self.drop_charges()

    def _forget(self, state: LimitState) -> None:
        if state.period.small and state.own:
            self._remember_small(state)
        self.limits = self.limits.without(state.id)

    def rotate(self, windows: list[Window], limits: list[LimitState]) -> None:
        """Put what a full message just said behind what did not fit, so that everything gets its turn."""
        for window in windows:
            self.windows = self.windows.without(window.id).put(window)
        for state in limits:
            if self.limits.get(state.id) is state:
                self.limits = self.limits.without(state.id).put(state)

    def _leased(self, rule: LimitRule) -> bool:
        return rule.stop is not None and not rule.shadow and not self.contract.shadow

    def _depart(self, state: LimitState, now_s: int = 0) -> None:
        """Let another limit take its place; by ``now_s`` its period may be over."""
        self.limits = self.limits.without(state.id)
        self.drop_charges()
        if state.period.small and state.own:
            self._remember_small(state)
        self._drop_ahead(state)
        if settled(state) and state.period.over(now_s):
            lapse(state)  # Redis knows what was spent of it, and what was not ends with the period there, too
            return
        state.depart()
        self._tell(state)

    def _drop_ahead(self, state: LimitState) -> None:
        ahead = state.lease.ahead
        if ahead is not None:
            state.lease.ahead = None
            ahead.depart()
            self._tell(ahead)

    def _tell(self, departed: LimitState) -> None:
        """Have the next message give back what a limit held that is none of this tenant any more."""
        self.departed = (*self.departed[1 - DEPARTED_MAX :], departed)
        self.exchange.touch(self)

    def replaced(self, departed: LimitState) -> bool:
        """Whether another limit speaks for what Redis keeps of it: one of that name whose period began with its own.

        Reported later than that one's first lease, it would give back what is being spent. Only what was spent of a
        second or a minute is in no window, and has to be told by whoever spent it or went on with it. Who speaks for
        others is not forgotten before Redis has heard it.
        """
        state = self.limits.get(departed.id)
        if state is not None and state.period.start_s != departed.period.start_s:
            state = state.lease.ahead
        if state is None or state.period.start_s != departed.period.start_s:
            return False
        if departed.period.small and state.own < departed.own:
            return False
        if departed.lease.reported_ms and not state.lease.reported_ms:
            state.own_lease().reported_ms = departed.lease.reported_ms
        return True

    def _remember_small(self, state: LimitState) -> None:
        self._small_own = noted(self._small_own, state.period, state.own, self.exchange.composed_ms)


def scope_value(rule: LimitRule, route: RouteRule, key_id: str, user: str) -> str | None:
    """What tells apart the counters of a scoped limit; "" for the tenant's own, None when it does not apply."""
    if rule.routes and route.name not in rule.routes:
        return None
    if rule.scope == "tenant":
        return ""
    if rule.scope == "route":
        return route.name
    return (key_id if rule.scope == "key" else user) or None


def _shape(rule: LimitRule) -> tuple[str, str, str]:
    return rule.metric, rule.period, rule.scope
