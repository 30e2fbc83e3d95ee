"""Joins the decision rules with the store: decides from memory, waits for Redis only where it must.

Guarantees: what is allowed was counted in the journal before the answer; all limits are spent or none; a request waits
            at most once for Redis beyond its first lookup, and WAIT_MS in all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.catalogue.model import ANONYMOUS
from sidecar.enforcement import explanation, verdict
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.fast_path import Check, FastPath
from sidecar.enforcement.verdict import DEGRADED, FINE, NEAR, SHORT, Denial
from sidecar.errors import ParentMissing, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from sidecar.catalogue.model import RouteRule
    from sidecar.catalogue.policy import Policy
    from sidecar.clock import Clock
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.directory import Directory
    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.enforcement.repeats import Repeats
    from sidecar.enforcement.synchroniser import Synchroniser
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters
    from sidecar.usage.window import Window

WAIT_MS = 50
ROUNDS = 8
NONE_UNLEASED: frozenset[LimitState] = frozenset()

UNKNOWN_TENANT = Decision(allow=False, status=401, reason="tenant_unknown", quota_status="denied")
UNKNOWN_KEY = Decision(allow=False, status=401, reason="key_unknown", quota_status="denied")
NO_IDENTITY = Decision(allow=False, status=401, reason="identity_missing", quota_status="denied")
STORE_AWAY = Decision(
    allow=False, status=503, reason="store_unavailable", quota_status="denied", retry_after_s=verdict.OUTAGE_RETRY_S
)


class Shortage:
    """Leases that have to be asked for before a request can be decided."""

    __slots__ = ("limits",)

    def __init__(self, limits: list[tuple[Account, LimitState, int]]) -> None:
        self.limits = limits


class Enforcer:
    """Decides requests of one worker; the gateway calls ``decide`` and, when that returns None, ``decide_waiting``."""

    def __init__(
        self,
        directory: Directory,
        synchroniser: Synchroniser,
        store: Store,
        clock: Clock,
        counters: CoreCounters,
        repeats: Repeats,
    ) -> None:
        self._directory = directory
        self._synchroniser = synchroniser
        self._store = store
        self._clock = clock
        self._counters = counters
        self._repeats = repeats
        self._fast_path = FastPath(directory.keys, synchroniser, clock, counters, repeats, self._away)
        self.allow_known = self._fast_path.allow

    @property
    def policy(self) -> Policy:
        """The catalogue in force."""
        policy = self._directory.policy
        if policy is None:
            raise StoreUnavailable("no catalogue has been read yet")
        return policy

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        """Decide from memory; None when Redis has to be asked first."""
        tenant = self._tenant(identity)
        if isinstance(tenant, Decision):
            return tenant
        if tenant is None:
            return None
        account = self._directory.account(tenant)
        if account is None:
            return UNKNOWN_TENANT if self._directory.unknown(tenant) else None
        self._counters.snapshot_hits += 1
        now_ms = self._clock.monotonic_ms()
        if request_id:
            repeated = self._repeats.find(request_id, tenant, route.name, now_ms)
            if repeated is not None:
                return repeated
            if self._repeats.pending(request_id, _asker(identity), route.name):
                return None
        outcome = self._examine(account, identity, route, now_ms)
        if isinstance(outcome, Shortage):
            return None
        if request_id and outcome.allow:
            self._repeats.keep(request_id, tenant, route.name, outcome, now_ms)
        return outcome

    def get_to_know(self, check: Check) -> None:
        """Have a check that was just allowed from memory decided on the fast path from now on, if that is possible.

        Of an answer that was repeated nothing is remembered but what others needed: a repeat begins no limits.
        """
        check.misses += 1
        if check.misses & (check.misses - 1):
            return  # tried lately, and it was not
        tenant = self._tenant(check.identity)
        account = self._directory.account(tenant) if isinstance(tenant, str) else None
        if account is not None:
            now_s = self._clock.wall_ms() // 1000
            charge = account.remembered(check.route, _key_id(check.identity), check.identity.user, now_s)
            if charge is not None:
                self._fast_path.prepare(check, account, charge)

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        """Decide with the help of Redis, within WAIT_MS; never raises."""
        counters = self._counters
        counters.requests_waiting += 1
        try:
            if not request_id:
                return await self._decide_waiting(identity, route)
            key = (request_id, _asker(identity), route.name)
            return await self._repeats.once(key, lambda: self._repeatable(identity, route, request_id))
        finally:
            counters.requests_waiting -= 1

    async def explain(self, identity: Identity, route: RouteRule) -> dict[str, object]:
        """The whole reasoning for a request, without spending; never raises."""
        account, _ = await self._found(identity)
        if isinstance(account, Decision):
            return explanation.refused(account, route)
        charge = account.charge(route, _key_id(identity), identity.user, self._clock.wall_s())
        away = not await self._confirm([(owner, state, 0) for owner, state, _ in charge.limits])
        account = self._directory.readmit(account)
        now_ms, wall_ms = self._clock.monotonic_ms(), self._clock.wall_ms()
        charge = account.charge(route, _key_id(identity), identity.user, wall_ms // 1000)
        checked = [
            (owner, state, units, self._check(owner, state, units, now_ms, wall_ms, away=away))
            for owner, state, units in charge.limits
        ]
        return explanation.explain(account, charge, checked, wall_ms, self.policy.catalogue)

    async def limits(self, tenant: str) -> dict[str, object] | Decision:
        """A tenant's limits with what is used of them, or why nothing can be said; never raises."""
        account, _ = await self._found(Identity(tenant))
        if isinstance(account, Decision):
            return account
        await self._confirm([(account, state, 0) for state in account.current(self._clock.wall_s())])
        account = self._directory.readmit(account)
        account.current(self._clock.wall_s())
        return explanation.limits(account, self.policy.catalogue, self._clock.wall_s())

    async def _confirm(self, limits: list[tuple[Account, LimitState, int]]) -> bool:
        """Have Redis say the totals of limits of which it did not lately; returns whether it did."""
        unknown = [one for one in limits if not one[1].known]
        return not unknown or await self._ask(Shortage(unknown), WAIT_MS)

    async def _repeatable(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        tenant = self._tenant(identity)
        now_ms = self._clock.monotonic_ms()
        if isinstance(tenant, str):
            repeated = self._repeats.find(request_id, tenant, route.name, now_ms)
            if repeated is not None:
                return repeated
        decision = await self._decide_waiting(identity, route, request_id)
        if decision.allow:
            self._repeats.keep(request_id, decision.tenant, route.name, decision, self._clock.monotonic_ms())
        return decision

    async def _decide_waiting(self, identity: Identity, route: RouteRule, request_id: str = "") -> Decision:
        deadline_ms = self._clock.monotonic_ms() + WAIT_MS
        found, answered = await self._found(identity)
        if isinstance(found, Decision):
            return found
        if request_id:
            # Whose it is may only be known now: the key was looked up, or was forgotten since the first copy.
            repeated = self._repeats.find(request_id, found.tenant, route.name, self._clock.monotonic_ms())
            if repeated is not None:
                return repeated
        if answered:  # else the wait for what did not come was the one that a request may have
            deadline_ms = self._clock.monotonic_ms() + WAIT_MS
        for _ in range(ROUNDS):
            now_ms = self._clock.monotonic_ms()
            found = self._directory.readmit(found)
            outcome = self._examine(found, identity, route, now_ms)
            if isinstance(outcome, Decision):
                return self._waited(outcome)
            if now_ms >= deadline_ms or not await self._ask(outcome, deadline_ms - now_ms):
                return self._unanswered(found, identity, route)
        # Redis grants, but others who wait here were quicker each time: there is room, so ask again shortly.
        found = self._directory.readmit(found)
        outcome = self._examine(found, identity, route, self._clock.monotonic_ms())
        if isinstance(outcome, Decision):
            return self._waited(outcome)
        denials = [verdict.contended(state) for _, state, _ in outcome.limits]
        return self._waited(verdict.deny(found, denials, self._clock.wall_ms(), self.policy.catalogue))

    def _unanswered(self, account: Account, identity: Identity, route: RouteRule) -> Decision:
        """The wait is over without an answer: every limit follows its outage policy."""
        self._counters.waits_timed_out += 1
        account = self._directory.readmit(account)
        outcome = self._examine(account, identity, route, self._clock.monotonic_ms(), away=True)
        return outcome if isinstance(outcome, Decision) else STORE_AWAY

    def _waited(self, decision: Decision) -> Decision:
        if decision.allow:
            self._counters.waits_answered += 1
        else:
            self._counters.waits_refused += 1
        return decision

    async def _found(self, identity: Identity) -> tuple[Account | Decision, bool]:
        """Who asks, as Redis says, or as far as it can be told without it; and whether Redis said it."""
        try:
            return await self._account(identity), True
        except ParentMissing:
            return STORE_AWAY, True
        except (StoreUnavailable, StoreRefused, TimeoutError):
            return self._without_store(identity), False

    async def _account(self, identity: Identity) -> Account | Decision:
        """Ask for what is not known, key, tenant, parent, within WAIT_MS. The calls go on for others who need them."""
        tenant = self._tenant(identity)
        if isinstance(tenant, Decision):
            return tenant
        account = None if tenant is None else self._directory.account(tenant)
        if account is not None:
            return account
        async with asyncio.timeout(WAIT_MS / 1000):
            if tenant is None:
                tenant = await self._directory.keys.load(identity.key or "")
            if tenant is None:
                return UNKNOWN_KEY
            return self._directory.account(tenant) or await self._directory.load(tenant) or UNKNOWN_TENANT

    def _without_store(self, identity: Identity) -> Account | Decision:
        """Redis cannot say who this is: a named tenant gets the default plan, a key cannot be trusted."""
        tenant = self._tenant(identity)
        if not isinstance(tenant, str):
            return STORE_AWAY
        return self._directory.account(tenant) or self._directory.provisional(tenant) or STORE_AWAY

    def _tenant(self, identity: Identity) -> str | Decision | None:
        """The tenant's id, a denial, or None when the key has to be looked up."""
        if identity.tenant is not None:
            return identity.tenant
        if identity.key is not None:
            known, tenant = self._directory.keys.tenant_of(identity.key)
            if not known:
                return None
            return UNKNOWN_KEY if tenant is None else tenant
        return ANONYMOUS if self.policy.catalogue.anonymous_plan else NO_IDENTITY

    async def _ask(self, shortage: Shortage, wait_ms: int) -> bool:
        """Have the shards of all short limits synced, with what is needed; returns whether all answered in time."""
        exchanges: dict[ShardExchange, None] = {}
        for account, state, units in shortage.limits:
            state.wait_for(units)
            account.exchange.touch(account)
            exchanges[account.exchange] = None
        waiters = [self._synchroniser.join(exchange) for exchange in exchanges]
        answered, unanswered = await asyncio.wait(waiters, timeout=wait_ms / 1000)
        return not unanswered and all(waiter.result() for waiter in answered)

    def _examine(
        self, account: Account, identity: Identity, route: RouteRule, now_ms: int, *, away: bool = False
    ) -> Decision | Shortage:
        """Check everything; spend all of it or none."""
        # A wall clock that stepped far back must not reach into hours that are closed.
        wall_ms = max(self._clock.wall_ms(), self._synchroniser.floor_ms)
        wall_s = wall_ms // 1000
        charge = account.charge(route, _key_id(identity), identity.user, wall_s)
        mark = verdict.standing(account, wall_s)
        if isinstance(mark, int) and not charge.features_missing:
            unleased: set[LimitState] | frozenset[LimitState] = NONE_UNLEASED
            for owner, state, units in charge.limits:
                found = self._check(owner, state, units, now_ms, wall_ms, away=away)
                if not isinstance(found, int):
                    break
                if found == DEGRADED:
                    unleased |= {state}
                mark = max(mark, found)
            else:
                self._spend(charge, unleased, wall_ms)
                return verdict.allow(account, charge, mark, wall_ms)
        return self._examine_closely(account, charge, now_ms, wall_ms, away=away)

    def _examine_closely(
        self, account: Account, charge: Charge, now_ms: int, wall_ms: int, *, away: bool
    ) -> Decision | Shortage:
        """Something refuses or is short: look at all of it before anything is spent."""
        findings = verdict.Findings(account, charge, wall_ms)
        for owner, state, units in charge.limits:
            findings.add(owner, state, units, self._check(owner, state, units, now_ms, wall_ms, away=away))
        if findings.denials and not account.contract.shadow:
            self._note_refused(charge, findings.denials)
            self._directory.refused(account, charge.lineage)
            return verdict.deny(account, findings.denials, wall_ms, self.policy.catalogue)
        if findings.short:
            return Shortage(findings.short)
        self._spend(charge, findings.unleased, wall_ms)
        return verdict.allow(account, charge, findings.mark, wall_ms)

    def _note_refused(self, charge: Charge, denials: list[Denial]) -> None:
        """Remember which limits were closed by an outage, until Redis answers for them again."""
        refused = [denial.state for denial in denials if denial.reason == "store_unavailable"]
        for owner, state, _ in charge.limits if refused else ():
            if state in refused:
                state.own_lease().refused = True
                if not owner.touched:
                    owner.exchange.touch(owner)

    def _check(
        self, owner: Account, state: LimitState, units: int, now_ms: int, wall_ms: int, *, away: bool
    ) -> Denial | int | str:
        """One limit of a charge: a mark, a Denial, or SHORT. Zero units ask for headroom only."""
        period = state.period
        if period.leased:
            if not units:
                return verdict.headroom(state, wall_ms, away=away or self._away(owner.exchange, now_ms))
            if not owner.exchange.spendable(now_ms) or state.left < units:
                return verdict.leased(state, units, now_ms, wall_ms, away=away or self._away(owner.exchange, now_ms))
            if period.rule.beyond == "deny":
                return NEAR if state.used + units >= period.near_at else FINE
        elif not (state.heard or period.carefree or away or self._away(owner.exchange, now_ms)):
            return SHORT
        return verdict.counted(state, units or 1, wall_ms)

    def _away(self, exchange: ShardExchange, now_ms: int) -> bool:
        """Whether no lease can be had from this shard at the moment."""
        if exchange.ended or not self._store.reachable(exchange.shard):
            return True
        return exchange.held_off and exchange.heard_lately(now_ms)

    def _spend(self, charge: Charge, unleased: frozenset[LimitState] | set[LimitState], wall_ms: int) -> None:
        windows = charge.windows
        if windows is None:
            windows = charge.windows = self._open_windows(charge, wall_ms // 1000)
        for window, units in windows:
            window.view[window.index] += units
        for owner, state, units in charge.limits:
            if not state.period.leased:
                state.spend_unleased(units)
                included = state.rule.included
                if not state.over_ms and included is not None and state.used > included:
                    state.over_ms = wall_ms
            elif state in unleased:
                state.spend_unleased(units)
                state.own_lease().outage_used += units
            else:
                state.spend(units)
                lease = state.lease
                if lease.units - state.pending < lease.renew_at and not lease.renewing:
                    state.own_lease().renewing = True
                    self._synchroniser.request(owner.exchange)
        for owner in charge.owners:
            if not owner.touched:
                owner.exchange.touch(owner)

    def _open_windows(self, charge: Charge, wall_s: int) -> list[tuple[Window, int]]:
        charge.owners = tuple(dict.fromkeys(owner for owner, _, _ in (*charge.series, *charge.limits)))
        return [
            (owner.exchange.window(owner, (series, owner.period(wall_s), wall_s // 3600)), units)
            for owner, series, units in charge.series
        ]


def _key_id(identity: Identity) -> str:
    return identity.key[:16] if identity.key else ""


def _asker(identity: Identity) -> str:
    """Who asks, before it is known which tenant that is."""
    return identity.tenant or identity.key or ANONYMOUS
