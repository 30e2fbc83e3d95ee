"""The shortest way to an allowance: for a check that was decided before, and for which nothing has to be looked up.

Guarantees: allows only what the enforcer would allow from memory, and counts it in the same way, before the answer;
            whenever anything is unusual it spends nothing and leaves the decision to the enforcer.
Gives up:   denials, parents, headroom, shadows that would deny, outages: those may take a microsecond longer.

bench/decision.py pays for every line of ``allow``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement import verdict
from sidecar.enforcement.repeats import suffix
from sidecar.enforcement.verdict import NEAR, OVER

if TYPE_CHECKING:
    from sidecar.catalogue.model import RouteRule
    from sidecar.clock import Clock
    from sidecar.enforcement.account import Account, Charge
    from sidecar.enforcement.decision import Decision, Identity
    from sidecar.enforcement.directory import Directory
    from sidecar.enforcement.lease import LimitState
    from sidecar.enforcement.repeats import Repeats
    from sidecar.enforcement.synchroniser import Synchroniser
    from sidecar.telemetry import CoreCounters


class Allowance:
    """What an allowed request is told; the next one of the same charge overwrites it.

    ``state`` is the tightest limit, None when none has an end; ``remaining`` units and ``reset_s`` seconds are its.
    ``template`` is kept here for whoever writes the answer, and None when mark or limit are others than last time.
    """

    __slots__ = ("account", "mark", "remaining", "reset_s", "state", "template")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.mark = -1
        self.state: LimitState | None = None
        self.remaining = 0
        self.reset_s = 0
        self.template: object = None

    def decision(self) -> Decision:
        """The same as a value of its own."""
        return verdict.allowance(self.account, self.mark, self.state, self.remaining, self.reset_s)


class Check:
    """Who asks for what. Whoever asks again with the same object spares the enforcer the look-ups of the last time."""

    __slots__ = ("allowance", "charge", "identity", "misses", "route", "suffix")

    def __init__(self, identity: Identity, route: RouteRule) -> None:
        self.identity = identity
        self.route = route
        self.charge: Charge | None = None
        self.allowance: Allowance | None = None
        self.suffix = ""
        self.misses = 0  # times the short way did not serve it since it last could


class FastPath:
    """Allows known checks of one worker from memory."""

    def __init__(
        self,
        directory: Directory,
        synchroniser: Synchroniser,
        clock: Clock,
        counters: CoreCounters,
        repeats: Repeats,
    ) -> None:
        self._directory = directory
        self._synchroniser = synchroniser
        self._clock = clock
        self._counters = counters
        self._repeats = repeats

    def prepare(self, check: Check, account: Account, charge: Charge) -> None:
        """Remember what a check came to, if the short way can decide it from now on."""
        plain = charge.windows is not None and not charge.features_missing and account.parent is None
        standing = verdict.standing(account, charge.since_ms // 1000)
        known = all(units and (state.heard or state.carefree) for _, state, units in charge.limits)
        if plain and known and isinstance(standing, int):
            charge.standing = standing
            check.charge = charge
            check.allowance = Allowance(account)
            check.suffix = suffix(account.tenant, check.route.name)
            check.misses = 0

    def allow(self, check: Check, request_id: str) -> Allowance | None:  # noqa: C901, PLR0912, PLR0915 - one frame, see above
        """Spend everything the check costs, or nothing (None)."""
        charge, allowance = check.charge, check.allowance
        if charge is None or allowance is None:
            return None
        account = allowance.account
        clock = self._clock
        wall_ms = clock.wall_ms()
        if charge.edition != account.edition or not charge.since_ms <= wall_ms < charge.until_ms:
            check.charge = None
            return None
        now_ms = clock.monotonic_ms()
        synchroniser = self._synchroniser
        if now_ms >= account.exchange.valid_until_ms or wall_ms < synchroniser.floor_ms:
            return None
        key = check.identity.key
        if key is not None and self._directory.tenant_of(key)[1] != account.tenant:
            return None
        repeats = self._repeats
        repeat = request_id + check.suffix
        if request_id and (repeats.waiting or repeats.is_repeat(repeat, now_ms)):
            return None

        mark = charge.standing
        spends = charge.spends
        for state, units in spends:
            used = state.used + units
            if state.leased and state.left < units:
                return None
            if used > state.free_until:
                if not state.billed_beyond:
                    return None
                mark = max(mark, OVER)
            elif used >= state.near_at and mark < NEAR:
                mark = NEAR

        for window, units in charge.windows or ():
            window.view[window.index] += units
            window.dirty = True
        tightest: LimitState | None = None
        remaining, quota = 0, 0
        for state, units in spends:
            state.own += units
            used = state.used = state.used + units
            if state.leased:
                left = state.left = state.left - units
                if left < state.renew_at and not state.renewing:
                    state.renewing = True
                    synchroniser.request(account.exchange)
            elif used > state.free_until and not state.over_ms:
                state.over_ms = wall_ms
            cap = state.quota
            if cap is not None:
                rest = cap - used
                if tightest is None or rest * quota < remaining * cap:
                    tightest, remaining, quota = state, rest, cap
        if not account.touched:
            account.exchange.touch(account)
        self._counters.snapshot_hits += 1

        if mark != allowance.mark or tightest is not allowance.state:
            allowance.mark, allowance.state, allowance.template = mark, tightest, None
        if tightest is not None:
            allowance.remaining = remaining if remaining > 0 else 0  # noqa: FURB136 - a call costs more
            reset_s = tightest.end_s - wall_ms // 1000
            allowance.reset_s = reset_s if reset_s > 0 else 0  # noqa: FURB136 - the same
        if request_id:
            repeats.keep_allowance(repeat, now_ms, account, mark, tightest, allowance.remaining, allowance.reset_s)
        return allowance
