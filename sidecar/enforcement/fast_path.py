"""The shortest way to an allowance: for a check that was decided before, and for which nothing has to be looked up.

Guarantees: allows only what the enforcer would allow from memory, and counts it in the same way, before the answer;
            whenever anything is unusual it spends nothing and leaves the decision to the enforcer.
Gives up:   denials, parents, headroom, shadows that would deny: those may take some microseconds longer.
            Which of several limits is the tightest is looked at each time that one of them used up a part of its rest.

A close look finds out what will stay as it is for how many units (``LimitState.calm``): mark, tightest limit, enough
lease, no renewal; or, without a lease, that the outage policy lets the request through for as long as Redis is away.
Until then a request costs an addition a limit. bench/decision.py pays for every line of ``allow``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.clock import MS_NS
from sidecar.enforcement import verdict
from sidecar.enforcement.limit_period import UNBOUNDED
from sidecar.enforcement.repeats import Kept, suffix
from sidecar.enforcement.verdict import DEGRADED, NEAR, OVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.catalogue.model import RouteRule
    from sidecar.clock import Clock
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.api_keys import ApiKeys
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.decision import Decision, Identity
    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.enforcement.repeats import Repeats
    from sidecar.enforcement.synchroniser import Synchroniser
    from sidecar.telemetry import CoreCounters

SECOND_MS = 1_000
REST_PARTS = 64
NEVER = -1
# The largest number of one digit, as Python holds them: those it compares in one step. What costs more base units than
# that is looked at closely each time.
CALM_MAX = (1 << 30) - 1


class Second:
    """One second of the wall clock, as long as that clock neither leaves it nor steps back to it."""

    __slots__ = ("wall_s",)

    def __init__(self, wall_s: int) -> None:
        self.wall_s = wall_s


class Allowance:
    """What an allowed request is told; the next one of the same charge overwrites the numbers.

    ``state`` is the tightest limit, None when none has an end; ``remaining`` units and ``reset_s`` seconds are its.
    ``template`` is kept here for whoever writes the answer. Where mark or limit change there is another allowance.
    """

    __slots__ = ("account", "mark", "remaining", "reset_s", "state", "template")

    def __init__(self, account: Account, mark: int, state: LimitState | None) -> None:
        self.account = account
        self.mark = mark
        self.state = state
        self.remaining = 0
        self.reset_s = 0
        self.template: object = None

    def decision(self, remaining: int, reset_s: int) -> Decision:
        """The same as a value of its own, with the numbers it had."""
        return verdict.allowance(self.account, self.mark, self.state, remaining, reset_s)


class Known:
    """What is known of a check that the short way decides.

    What the last close look found out holds in that ``second``, in which no charge ends, and in the account's ``turn``:
    the allowance, and what is left of the tightest limit but for its ``pending``. Where leases pay for all of it, it
    holds before ``paid_until_ms`` (monotonic). Where an outage policy let something through, it holds instead before
    ``outage_until_ms``, as long as Redis is away and leases are renewed no further than to ``lapse_ms``.
    """

    __slots__ = (
        "account",
        "allowance",
        "charge",
        "lapse_ms",
        "outage_until_ms",
        "paid_until_ms",
        "rest",
        "second",
        "standing",
        "suffix",
        "tightest",
        "turn",
    )

    def __init__(self, account: Account, charge: Charge, standing: int, route: str) -> None:
        self.account = account
        self.charge = charge
        self.standing = standing
        self.suffix = suffix(account.tenant, route)
        self.allowance = Allowance(account, standing, None)
        self.tightest: LimitState | None = None
        self.rest = 0
        self.turn = NEVER
        self.second: Second | None = None
        self.paid_until_ms = self.outage_until_ms = self.lapse_ms = NEVER

    def note(self, mark: int, second: Second, lasts_ms: int) -> None:
        """Take note of what a close look came to; ``lasts_ms``: until when (monotonic) leases are worth the same."""
        account, charge, allowance = self.account, self.charge, self.allowance
        tightest = self.tightest = _tightest(charge)
        if mark != allowance.mark or tightest is not allowance.state:
            allowance = self.allowance = Allowance(account, mark, tightest)
        if tightest is not None and tightest.period.quota is not None:
            self.rest = tightest.period.quota - tightest.used + tightest.pending
            allowance.reset_s = max(0, tightest.period.end_s - second.wall_s)
        self.turn = account.turn
        self.paid_until_ms, self.outage_until_ms = (NEVER, lasts_ms) if mark == DEGRADED else (lasts_ms, NEVER)
        self.lapse_ms = account.exchange.valid_until_ms
        self.second = second


class Check:
    """Who asks for what. Whoever asks again with the same object spares the enforcer the look-ups of the last time."""

    __slots__ = ("identity", "key", "known", "misses", "route")

    def __init__(self, identity: Identity, route: RouteRule) -> None:
        self.identity = identity
        self.route = route
        self.key = identity.key
        self.known: Known | None = None
        self.misses = 0  # times the short way did not serve it since it last could


class FastPath:
    """Allows known checks of one worker from memory."""

    def __init__(
        self,
        keys: ApiKeys,
        synchroniser: Synchroniser,
        clock: Clock,
        counters: CoreCounters,
        repeats: Repeats,
        away: Callable[[ShardExchange, int], bool],
    ) -> None:
        self._away = away
        self._keys = keys
        self._synchroniser = synchroniser
        self._clock = clock
        self._counters = counters
        self._repeats = repeats
        self._monotonic_ns = clock.monotonic_ns
        self._now_ms = self._wall_now_ms = NEVER  # both are worked out once a millisecond
        self._next_ms_ns = 0
        self._second = Second(NEVER)

    def prepare(self, check: Check, account: Account, charge: Charge) -> None:
        """Remember what a check came to, if the short way can decide it from now on."""
        plain = charge.windows is not None and not charge.features_missing and account.parent is None
        heard = all(
            units and (state.heard or state.period.leased or state.period.carefree) for _, state, units in charge.limits
        )
        standing = verdict.standing(account, charge.since_ms // SECOND_MS)
        if plain and heard and isinstance(standing, int):
            check.known = Known(account, charge, standing, check.route.name)
            check.misses = 0

    def allow(self, check: Check, request_id: bytes) -> Allowance | None:
        """Spend everything the check costs, or nothing (None)."""
        known = check.known
        if known is None:
            return None
        account = known.account
        monotonic_ns = self._monotonic_ns  # called as an attribute it would be looked for as a method first
        now_ns = monotonic_ns()
        if now_ns >= self._next_ms_ns:
            self._take_time(now_ns)
        now_ms = self._now_ms
        key = check.key
        if key is not None and self._keys.tenant_of(key)[1] != account.tenant:
            return None
        repeats = self._repeats
        repeat = request_id + known.suffix if request_id else b""
        if repeat and (repeats.waiting or repeats.is_repeat(repeat, now_ms)):
            return None
        charge = known.charge
        calm = (
            known.second is self._second
            and known.turn == account.turn
            and (now_ms < known.paid_until_ms or self._goes_on(known, now_ms))
        )
        for state, units in charge.spends:
            pending = state.pending = state.pending + units
            if pending > state.calm:
                calm = False
        if not calm and not self._look_again(check, known, now_ms):
            return None

        for window, units in charge.windows or ():
            window.view[window.index] += units
        if not account.touched:
            account.exchange.touch(account)
        self._counters.snapshot_hits += 1

        allowance = known.allowance
        tightest = known.tightest
        if tightest is not None:
            remaining = known.rest - tightest.pending
            allowance.remaining = remaining if remaining > 0 else 0  # noqa: FURB136 - a call costs more
        if repeat and repeats.kept_ms:
            kept = Kept(now_ms + repeats.kept_ms, allowance, allowance.remaining, allowance.reset_s)
            repeats.remember(repeat, kept, now_ms)
        return allowance

    def _take_time(self, now_ns: int) -> None:
        """Read the wall clock in a new millisecond of the monotonic one."""
        self._now_ms = now_ns // MS_NS
        self._next_ms_ns = (self._now_ms + 1) * MS_NS
        self._wall_now_ms = self._clock.wall_ms()
        wall_s = self._wall_now_ms // SECOND_MS
        if wall_s != self._second.wall_s:
            self._second = Second(wall_s)

    def _goes_on(self, known: Known, now_ms: int) -> bool:
        """Whether an outage policy let it through when it was looked at, and goes on to do so."""
        exchange = known.account.exchange
        lapsing = now_ms < known.outage_until_ms and exchange.valid_until_ms == known.lapse_ms
        return lapsing and self._away(exchange, now_ms)

    def _look_again(self, check: Check, known: Known, now_ms: int) -> bool:
        """Take back what was spent ahead of a close look, and spend it if that allows it, maybe of other periods."""
        for state, units in known.charge.spends:
            state.pending -= units
        if not self._look(check, known, now_ms, self._wall_now_ms):
            return False
        for state, units in known.charge.spends:
            state.pending += units
        return True

    def _look(self, check: Check, known: Known, now_ms: int, wall_ms: int) -> bool:
        """Look closely: whether the check can be allowed here, and what stays as it is for how long."""
        account, charge = known.account, known.charge
        valid = charge.edition == account.edition and charge.since_ms <= wall_ms < charge.until_ms
        if wall_ms < self._synchroniser.floor_ms or not (valid or account.renew(charge, wall_ms // SECOND_MS)):
            check.known = None
            return False
        exchange = account.exchange
        mark, lasts_ms = known.standing, UNBOUNDED
        uncovered = []
        for state, units in charge.spends:
            period = state.period
            if period.leased:
                spendable = exchange.spendable(now_ms)
                lasts_ms = exchange.valid_until_ms if spendable else exchange.gone_after_ms or UNBOUNDED
                if not spendable or state.left < units:
                    away = self._away(exchange, now_ms)
                    if verdict.leased(state, units, now_ms, wall_ms, away=away) != DEGRADED:
                        return False
                    uncovered.append(state)
                    mark = DEGRADED
                    continue
            used = state.used + units
            if used > period.free_until:
                if not period.billed_beyond:
                    return False
                mark = max(mark, OVER)
            elif used >= period.near_at:
                mark = max(mark, NEAR)
        for state, units in charge.spends:
            leaseless = state in uncovered
            if state.pending + units > state.calm or state.lease.uncovered != leaseless:
                self._calm(account, state, units, wall_ms, uncovered=leaseless)
                account.turn += 1  # for other checks that spend from it
        known.note(mark, self._second, lasts_ms)
        return True

    def _calm(self, account: Account, state: LimitState, units: int, wall_ms: int, *, uncovered: bool) -> None:
        """Work out for how many units, these included, a limit changes nothing but its numbers."""
        state.take_in()
        period, used = state.period, state.used
        calm = CALM_MAX
        if uncovered:
            state.own_lease().uncovered = True
            # And a part of the quota, below, which ends before the limit does.
            calm = min(calm, verdict.outage_room(state))
        elif period.leased:
            lease, left = state.lease, state.left
            if not lease.renewing and left - units < lease.renew_at:
                lease = state.own_lease()
                lease.renewing = True
                self._synchroniser.request(account.exchange)
            calm = min(calm, left if lease.renewing else left - lease.renew_at)
        if used + units < period.near_at:
            calm = min(calm, period.near_at - 1 - used)
        elif used + units <= period.free_until:
            calm = min(calm, period.free_until - used)
        elif not period.leased and not state.over_ms:
            state.over_ms = wall_ms
        if period.quota is not None and period.quota > used:
            calm = min(calm, max(units, (period.quota - used) // REST_PARTS))
        state.calm = calm


def _tightest(charge: Charge) -> LimitState | None:
    """The limit of which the smallest part is left after this request."""
    tightest: LimitState | None = None
    remaining, quota = 0, 0
    for state, units in charge.spends:
        cap = state.period.quota
        if cap is not None:
            rest = cap - state.used - units
            if tightest is None or rest * quota < remaining * cap:
                tightest, remaining, quota = state, rest, cap
    return tightest
