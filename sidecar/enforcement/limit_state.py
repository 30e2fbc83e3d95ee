"""One limit of one tenant in one period, as this writer sees it, and the lease it may spend from.

Guarantees: never spends more than Redis granted; gives back what it does not use.
Gives up:   units unspent when the process dies, until its death is reported or they are reclaimed.

Nothing here awaits, logs or reads a clock. Units are base units; times are milliseconds, monotonic where they are
called ``now_ms`` and Redis' wall time where they come from a reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement.lease import NO_LEASE, Lease, coarse, laid, taken
from sidecar.enforcement.limit_period import UNBOUNDED, LimitPeriod, limit_period
from sidecar.store.messages import LeaseReply, LeaseReport

if TYPE_CHECKING:
    from sidecar.catalogue.snapshot import LimitRule

IDLE_AFTER_MS = 1_500
FORGET_AFTER_MS = 60_000
CONTENDED_FOR_MS = 200
CALLED_RESERVE_MS = 100
AMPLE_LEASES = 8

NOTHING, SOME, ALL = range(3)  # of what Redis knows was told here


class LimitState:
    """What is left of the lease, what is used in all, and what Redis last said about the rest.

    ``own`` counts this writer's spending in the period. There are very many of these and few in use:
    ``lease`` is NO_LEASE while there is nothing to remember of one, and shared with others while it rests.

    The fast path only adds to ``pending``, units that ``own``, ``used`` and ``left`` take in when they are looked at,
    and only up to ``calm``: until then it changes nothing but these numbers. Whoever changes one of them in another
    way makes ``calm`` 0, so that the fast path looks closely again.
    """

    __slots__ = ("_own", "_told", "_used", "calm", "lease", "own_reported", "pending", "period")

    def __init__(self, period: LimitPeriod) -> None:
        self.period = period
        self.pending = self.calm = 0
        self._own = self._used = self.own_reported = 0
        self._told = NOTHING
        self.lease: Lease = Lease(period.first) if period.scoped else NO_LEASE

    @property
    def id(self) -> str:
        """Name of the limit, and of whose counter it is where it has a scope."""
        return self.period.id

    @property
    def rule(self) -> LimitRule:
        """What the limit says."""
        return self.period.rule

    def succeed(self, former: LimitState, now_ms: int) -> None:
        """Go on after a period that ended: requests come as before, and an outage does not end with a period."""
        before = former.lease
        if before is not NO_LEASE:
            lease = self.own_lease()
            lease.outage_used = former.outage_used
            lease.rate_per_s = before.rate_per_s
            lease.own_changed_ms = now_ms if former.own != former.own_reported else before.own_changed_ms
            lease.ample = before.ample

    def follow(self, rule: LimitRule, *, leased: bool) -> None:
        """Go by another rule in the same period; Redis has to say anew what is left."""
        self.take_in()
        period = self.period
        self.period = limit_period(rule, period.id, period.start_s, period.end_s, leased=leased)
        self.known = False
        if not self.lease.shared:
            self.lease.contended_until_ms = 0
        if not leased and self.lease.units:
            self.own_lease().units = 0

    def last(self, end_s: int) -> None:
        """Last until then: the period that began when this one did is now a longer or a shorter one."""
        self.take_in()
        period = self.period
        self.period = limit_period(period.rule, period.id, period.start_s, end_s, leased=period.leased)

    def own_lease(self) -> Lease:
        """The lease to write to."""
        if self.lease.shared:
            self.lease = Lease(self.period.first) if self.lease is NO_LEASE else taken(self.lease)
        return self.lease

    def lay(self) -> None:
        """Share the lease with others that are at rest, until it is used."""
        lease = self.lease
        if self.known and lease.quiet and not (lease.shared or lease.in_flight or self.pending):
            lease.own_changed_ms, lease.reported_ms = coarse(lease.own_changed_ms), coarse(lease.reported_ms)
            self.lease = laid(lease)

    @property
    def heard(self) -> bool:
        """Whether Redis has said the totals since the period began here."""
        return self._told != NOTHING

    @property
    def known(self) -> bool:
        """Whether it has confirmed them since the last change or failure."""
        return self._told == ALL

    @known.setter
    def known(self, known: bool) -> None:
        self._told = ALL if known else min(self._told, SOME)

    @property
    def over_ms(self) -> int:
        """When the included amount was exceeded, 0 before."""
        return self.lease.over_ms

    @over_ms.setter
    def over_ms(self, wall_ms: int) -> None:
        if wall_ms != self.lease.over_ms:
            self.own_lease().over_ms = wall_ms

    @property
    def own(self) -> int:
        """Units that this writer spent in the period."""
        return self._own + self.pending

    @own.setter
    def own(self, units: int) -> None:
        self.take_in()
        self._own = units

    @property
    def used(self) -> int:
        """Units that everybody used in the period, as far as is known here."""
        return self._used + self.pending

    @used.setter
    def used(self, units: int) -> None:
        self.take_in()
        self._used = units

    @property
    def left(self) -> int:
        """Units of the lease that may still be spent; none where nothing is leased."""
        lease = self.lease
        if not self.period.leased:
            return 0
        return lease.units if lease.uncovered else lease.units - self.pending

    @left.setter
    def left(self, units: int) -> None:
        self.take_in()
        if units or self.lease is not NO_LEASE:
            self.own_lease().units = units

    @property
    def outage_used(self) -> int:
        """Units that the outage policy has let through since Redis granted any."""
        lease = self.lease
        return lease.outage_used + self.pending if lease.uncovered else lease.outage_used

    def take_in(self) -> None:
        """Take note of what the fast path spent, and have it look again before it spends more."""
        pending = self.pending
        self.pending = self.calm = 0
        if pending:
            self._own += pending
            self._used += pending
        if self.lease.uncovered:
            self.lease.uncovered = False
            self.lease.outage_used += pending
        elif pending and self.period.leased:
            self.own_lease().units -= pending

    @property
    def to_report(self) -> bool:
        """Whether the next message has to speak of it."""
        return bool(self.news or self.left or self.lease.watched or self.lease.refused)

    @property
    def news(self) -> bool:
        """Whether it has something to say that it did not say before, or asks for units."""
        return bool(self.own != self.own_reported or self.lease.need or not self.known)

    def goes_back(self, now_ms: int, rest_ms: int) -> bool:
        """Whether nobody spent of it lately, so that what is left is of use to others."""
        idle_ms = now_ms - self.lease.own_changed_ms
        return idle_ms >= IDLE_AFTER_MS and not (self._may_rest and idle_ms < rest_ms)

    def forgettable(self, now_ms: int) -> bool:
        """Whether nothing is lost with it: nobody spent lately, Redis knows all, and it holds nothing."""
        return self.unused(now_ms) and (self.known or not self.lease.reported_ms)

    def unused(self, now_ms: int) -> bool:
        """Whether nobody spent lately, and it holds nothing here.

        As long as Redis has not confirmed the report that said so, it may still set units aside for this writer.
        """
        lease = self.lease
        if self.left or lease.need or lease.in_flight or lease.watched or self.own != self.own_reported:
            return False
        return now_ms - lease.own_changed_ms >= FORGET_AFTER_MS

    def spend(self, units: int) -> None:
        """Count ``units`` as used; the caller has checked that a leased limit has them left."""
        if self.lease.uncovered:
            self.take_in()
        self.pending += units

    def spend_unleased(self, units: int) -> None:
        """Count ``units`` that no lease covers: a counted limit, or one that its outage policy lets through."""
        self.take_in()
        self._own += units
        self._used += units

    def wait_for(self, units: int) -> None:
        """A request waits for ``units``: the next report needs the most that one wants, and wants what all do."""
        if units:
            lease = self.own_lease()
            lease.need = max(lease.need, units)
            lease.least = min(lease.least or units, units)
            lease.waiting += units

    def _lacking(self) -> int:
        """Units that the next report must bring: for the largest request that waits, if it can fit, else the smallest.

        Or one that is too large for the room that there is would keep others from what fits.
        """
        lease, stop = self.lease, self.period.stop
        free = UNBOUNDED if stop is None or not self.known else stop - self.used - lease.held_elsewhere
        return max(0, (lease.need if lease.need <= free else lease.least) - self.left)

    def spent_out(self, units: int) -> bool:
        """Whether ``units`` cannot fit any more in this period, whoever gives what back."""
        stop = self.period.stop
        return self.known and stop is not None and stop - self.used < units

    def hold_on(self, units: int, now_ms: int) -> bool:
        """Whether asking again for ``units`` is pointless for now: others hold them, and were asked a moment ago."""
        return now_ms < self.lease.contended_until_ms and self.left < units

    def report(
        self,
        now_ms: int,
        lease_seconds: int,
        lease_units_max: int,
        rest_ms: int = 0,
        *,
        renewing: bool = True,
        spaced: bool = False,
    ) -> LeaseReport:
        """What a sync says of this limit. Gives an idle lease back: ``left`` is lowered first, reported after.

        ``renewing`` False asks for no more than somebody waits for: the limit departed, or the writer is about to stop.
        ``spaced``: the next sync comes later than usual, so the lease is larger, and filled up before it is half empty.
        ``rest_ms``: how long a small lease may stay unused of which Redis has plenty.
        """
        self.take_in()
        spent = self._own - self.own_reported
        self.own_reported = self._own
        period = self.period
        left = need = want = 0
        if period.leased or self.lease is not NO_LEASE:
            lease = self.own_lease()
            elapsed_ms = max(1, now_ms - lease.reported_ms)
            if spent or lease.need:
                # Units that are fetched for somebody who waits are in use, or the next report could give them back
                # before the one who waits has its turn.
                lease.own_changed_ms = now_ms
            if lease.reported_ms:
                rate = spent * 1000 // max(elapsed_ms, 20)
                lease.rate_per_s = max(rate, lease.rate_per_s * 7 // 8 if elapsed_ms < IDLE_AFTER_MS else 0)
            if period.leased:
                if not renewing or self.goes_back(now_ms, rest_ms):
                    lease.units = 0
                elif now_ms - lease.own_changed_ms >= IDLE_AFTER_MS:
                    lease.target = period.first
                    if not lease.reported_ms:  # it goes on in the next period
                        want = period.first
                    lease.units = min(lease.units, period.first)
                else:
                    begun = self._own > 0
                    want = lease.wanted(period, lease_seconds, lease_units_max, begun=begun, spaced=spaced)
            left = self.left
            need = self._lacking()
            lease.need = lease.least = lease.waiting = 0
            lease.renewing = want > 0
            lease.in_flight = True
            lease.reported_ms = now_ms
        cumulative = self._own if period.small else 0
        end_ms = period.end_s * 1000
        return LeaseReport(
            period.rule.name, period.id, period.start_s, end_ms, period.small, left, need, max(want, need), cumulative
        )

    @property
    def _may_rest(self) -> bool:
        return self.lease.ample and not self.period.scoped

    @property
    def at_rest(self) -> bool:
        """Whether so little is left, and Redis has so much more, that nothing need be said of it for a while."""
        return self._may_rest and self.left <= self.period.first and not self.lease.need

    def settle(
        self,
        sent: LeaseReport,
        own_sent: int,
        reply: LeaseReply,
        now_ms: int,
        *,
        renewed: bool,
        granting: bool = True,
    ) -> bool:
        """Take over what Redis said: totals always, the lease only when ``renewed`` (an accepted, timely reply).

        An outage, and what its policy has let through, ends when the shard is ``granting`` again. Returns whether Redis
        has many more leases of this size to give.
        """
        self.take_in()
        since = self._own - own_sent
        self._used = reply.spent + since
        self.over_ms = reply.over_ms
        period, lease = self.period, self.lease
        self.known = True
        target = lease.target or period.first
        ample = period.stop is None or period.stop - reply.spent - reply.held > AMPLE_LEASES * target
        if lease is NO_LEASE and not (period.leased and reply.units):
            return ample
        lease = self.own_lease()
        lease.in_flight = False
        lease.ample = ample
        if not period.leased:
            lease.refused = False
        elif renewed:
            self._renew(lease, sent, reply, since, now_ms, granting=granting)
        elif reply.units:
            # A repetition that overtook the message may have been granted these: say again what is left.
            self.known = False
        self._let_go(lease)
        return ample

    def _renew(
        self, lease: Lease, sent: LeaseReport, reply: LeaseReply, since: int, now_ms: int, *, granting: bool
    ) -> None:
        lease.renewing = False
        if granting:
            lease.outage_used = 0
            lease.refused = False
        lease.held_elsewhere = reply.held - reply.units
        lease.units = max(0, reply.units - since)
        lease.renew_at = min(lease.target, lease.units) // 3
        asked = sent.want > 0
        short = reply.units < sent.left + max(1, sent.need)
        contended = asked and short and not self.spent_out(1)
        lease.contended_until_ms = now_ms + CONTENDED_FOR_MS if contended else 0
        if reply.called and not sent.need:
            # Somebody is short: keep what the next moment needs and give the rest back with the next report.
            reserve = lease.rate_per_s * CALLED_RESERVE_MS // 1000
            if lease.units > reserve:
                lease.units = reserve
                self.known = False

    def _let_go(self, lease: Lease) -> None:
        """Forget the lease once there is nothing left, wanted or doubtful; what comes next begins as the first time."""
        kept = lease.units or lease.over_ms or lease.held_elsewhere or self.period.scoped
        if self.known and lease.quiet and not kept and self._own == self.own_reported:
            self.lease = NO_LEASE

    def reject(self, *, renewing: bool = False) -> None:
        """A report may not have arrived, or had no effect. ``renewing``: a lease that is low waits for the next one."""
        self.known = False
        if not self.lease.shared:
            self.lease.in_flight = False
            self.lease.renewing = renewing and self.period.leased

    def forfeit(self) -> None:
        """Give up what is left, and say so in the next report.

        The cap was lowered, the period is over, or Redis may have given the units to others.
        """
        self.left = 0
        self.known = False
        if not self.lease.shared:
            self.lease.renew_at = 0
        if self.lease.ahead is not None:
            self.lease.ahead.forfeit()

    def depart(self) -> None:
        """Forfeit for good: who waited asks the limit that follows, so units granted for it would be nobody's."""
        self.forfeit()
        if not self.lease.shared:
            self.lease.need = self.lease.least = self.lease.waiting = 0
