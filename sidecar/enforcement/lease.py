"""One limit of one tenant in one period, as this writer sees it, and the lease it may spend from.

Guarantees: never spends more than Redis granted; gives back what it does not use.
Gives up:   units unspent when the process dies, until its death is reported or they are reclaimed.

Nothing here awaits, logs or reads a clock. Units are base units; times are milliseconds, monotonic where they are
called ``now_ms`` and Redis' wall time where they come from a reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.store.messages import LeaseReply, LeaseReport

if TYPE_CHECKING:
    from sidecar.catalogue.snapshot import LimitRule

NEAR_PERCENT = 80
FIRST_LEASE_UNITS = 20
FIRST_PART = 8
IDLE_AFTER_MS = 1_500
FORGET_AFTER_MS = 60_000
CONTENDED_FOR_MS = 200
CALLED_RESERVE_MS = 100
AMPLE_LEASES = 8
SPACED_TIMES = 3
UNBOUNDED = 1 << 63


class LimitState:
    """What is left of the lease, what is used in all, and what Redis last said about the rest.

    A limit without ``stop``, or in shadow, is counted and never ``leased``. ``own`` counts this writer's spending in
    the period; ``known`` is False until Redis has confirmed the totals since the last change or failure, and ``heard``
    until it has said them for the first time. ``ample``: Redis has many more leases of this size to give.

    The fast path only adds to ``pending``, units that ``own``, ``used`` and ``left`` take in when they are looked at,
    and only up to ``calm``: until then it changes nothing but these numbers. Whoever changes one of them in another
    way makes ``calm`` 0, so that the fast path looks closely again.
    """

    __slots__ = (
        "_left",
        "_own",
        "_used",
        "ample",
        "billed_beyond",
        "calm",
        "carefree",
        "contended_until_ms",
        "end_s",
        "first",
        "free_until",
        "heard",
        "held_elsewhere",
        "id",
        "in_flight",
        "known",
        "leased",
        "least",
        "near_at",
        "need",
        "outage_used",
        "over_ms",
        "own_changed_ms",
        "own_reported",
        "pending",
        "quota",
        "rate_per_s",
        "refused",
        "renew_at",
        "renewing",
        "reported_ms",
        "rule",
        "small",
        "start_s",
        "stop",
        "target",
        "waiting",
        "watched",
    )

    def __init__(self, rule: LimitRule, limit_id: str, start_s: int, end_s: int, *, leased: bool) -> None:
        self.id = limit_id
        self.start_s = start_s
        self.end_s = end_s
        self.small = rule.period in ("second", "minute")
        self.leased = leased
        self.pending = self._left = self._used = self._own = 0
        self.follow(rule, leased=leased)
        self.own_reported = 0
        self.own_changed_ms = 0
        self.held_elsewhere = 0
        self.over_ms = 0
        self.known = False
        self.heard = False
        self.ample = False
        self.in_flight = False
        self.need = 0
        self.least = 0
        self.waiting = 0
        self.renewing = False
        self.renew_at = 0
        self.target = self.first
        self.rate_per_s = 0
        self.reported_ms = 0
        self.contended_until_ms = 0
        self.outage_used = 0
        self.refused = False  # its outage policy denied something since Redis last answered for it
        self.watched = False  # its total matters although this writer does not spend from it

    def succeed(self, former: LimitState, now_ms: int) -> None:
        """Go on after a period that ended: requests come as before, and an outage does not end with a period."""
        self.outage_used = former.outage_used
        self.rate_per_s = former.rate_per_s
        self.own_changed_ms = now_ms if former.own != former.own_reported else former.own_changed_ms
        self.ample = former.ample

    def follow(self, rule: LimitRule, *, leased: bool) -> None:
        """Go by a rule, and work out what every request would have to.

        ``quota``: what answers show; ``near_at``: the use from which they say that it is nearly used up;
        ``free_until``: the use up to which nothing but the lease matters; ``billed_beyond``: what follows is paid for;
        ``carefree``: a counted limit that denies nothing, or not for long, so that it need not be heard of first.
        """
        included = rule.included
        self.take_in()
        self.rule = rule
        self.stop = rule.stop
        self.leased = leased
        self.quota = included if rule.stop is None else rule.stop
        # A small cap is not handed to the first who asks: others would be denied until it comes back.
        self.first = FIRST_LEASE_UNITS if rule.stop is None else min(FIRST_LEASE_UNITS, max(1, rule.stop // FIRST_PART))
        self.near_at = UNBOUNDED if included is None else -(-included * NEAR_PERCENT // 100)
        self.free_until = UNBOUNDED if included is None or (leased and rule.beyond == "deny") else included
        self.billed_beyond = rule.beyond == "bill"
        self.carefree = self.small or rule.shadow or included is None or self.billed_beyond

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
        return self._left - self.pending if self.leased else 0

    @left.setter
    def left(self, units: int) -> None:
        self.take_in()
        self._left = units

    def take_in(self) -> None:
        """Take note of what the fast path spent, and have it look again before it spends more."""
        pending = self.pending
        self._own += pending
        self._used += pending
        self._left = self._left - pending if self.leased else 0
        self.pending = self.calm = 0

    @property
    def series(self) -> str:
        """The series whose windows feed this limit."""
        return f"{self.rule.metric}@{self.id}" if self.rule.scope != "tenant" else self.rule.metric

    @property
    def to_report(self) -> bool:
        """Whether the next message has to speak of it."""
        due = self.own != self.own_reported or self.left or self.need or self.watched or self.refused
        return bool(due or not self.known)

    def forgettable(self, now_ms: int) -> bool:
        """Whether nothing is lost with it: nobody spent lately, Redis knows all, and it holds nothing."""
        return self.unused(now_ms) and (self.known or not self.reported_ms)

    def unused(self, now_ms: int) -> bool:
        """Whether nobody spent lately, and it holds nothing here.

        As long as Redis has not confirmed the report that said so, it may still set units aside for this writer.
        """
        if self.left or self.need or self.in_flight or self.watched or self.own != self.own_reported:
            return False
        return now_ms - self.own_changed_ms >= FORGET_AFTER_MS

    def spend(self, units: int) -> None:
        """Count ``units`` as used; the caller has checked that a leased limit has them left."""
        self.pending += units

    def spend_unleased(self, units: int) -> None:
        """Count ``units`` that no lease covers: a counted limit, or one that its outage policy lets through."""
        if self.leased:
            self._left += units
        self.pending += units
        self.take_in()

    def wait_for(self, units: int) -> None:
        """A request waits for ``units``: the next report needs the most that one wants, and wants what all do."""
        self.need = max(self.need, units)
        if units:
            self.least = min(self.least or units, units)
        self.waiting += units

    def _lacking(self) -> int:
        """Units that the next report must bring: for the largest request that waits, if it can fit, else the smallest.

        Or one that is too large for the room that there is would keep others from what fits.
        """
        free = UNBOUNDED if self.stop is None or not self.known else self.stop - self.used - self.held_elsewhere
        return max(0, (self.need if self.need <= free else self.least) - self.left)

    def spent_out(self, units: int) -> bool:
        """Whether ``units`` cannot fit any more in this period, whoever gives what back."""
        return self.known and self.stop is not None and self.stop - self.used < units

    def hold_on(self, units: int, now_ms: int) -> bool:
        """Whether asking again for ``units`` is pointless for now: others hold them, and were asked a moment ago."""
        return now_ms < self.contended_until_ms and self.left < units

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
        spent = self.own - self.own_reported
        elapsed_ms = max(1, now_ms - self.reported_ms)
        if spent or self.need:
            # Units that are fetched for somebody who waits are in use, or the next report could give them back before
            # the one who waits has its turn.
            self.own_changed_ms = now_ms
        if self.reported_ms:
            rate = spent * 1000 // max(elapsed_ms, 20)
            self.rate_per_s = max(rate, self.rate_per_s * 7 // 8 if elapsed_ms < IDLE_AFTER_MS else 0)
        want = 0
        if self.leased:
            idle_ms = now_ms - self.own_changed_ms
            if not renewing or (idle_ms >= IDLE_AFTER_MS and not (self._may_rest and idle_ms < rest_ms)):
                self.left = 0
            elif idle_ms >= IDLE_AFTER_MS:
                self.target = self.first
                if not self.reported_ms:  # it goes on in the next period
                    want = self.first
                self.left = min(self.left, self.first)
            else:
                seconds = lease_seconds * SPACED_TIMES if spaced and self.ample else lease_seconds
                rate = self.rate_per_s * seconds
                if not self.reported_ms and self.stop is not None:
                    rate = min(rate, self.stop // FIRST_PART)  # as it was in the period before
                self.target = min(max(rate, self.first), lease_units_max)
                want = max(0, self.target - self.left)
                # A lease that is more than half full is not topped up: syncs would grow with the traffic.
                if self.left * (4 if seconds == lease_seconds else 3) > self.target * 2:
                    want = 0
                want = max(want, self.waiting - self.left)
        need = self._lacking()
        self.need = self.least = self.waiting = 0
        self.renewing = want > 0
        self.own_reported = self.own
        self.in_flight = True
        self.reported_ms = now_ms
        rule = self.rule
        cumulative = self.own if self.small else 0
        left = self.left if self.leased else 0
        return LeaseReport(
            rule.name, self.id, self.start_s, self.end_s * 1000, self.small, left, need, max(want, need), cumulative
        )

    @property
    def _may_rest(self) -> bool:
        return self.ample and self.rule.scope == "tenant"

    @property
    def at_rest(self) -> bool:
        """Whether so little is left, and Redis has so much more, that nothing need be said of it for a while."""
        return self._may_rest and self.left <= self.first and not self.need

    def settle(
        self,
        sent: LeaseReport,
        own_sent: int,
        reply: LeaseReply,
        now_ms: int,
        *,
        renewed: bool,
        granting: bool = True,
    ) -> None:
        """Take over what Redis said: totals always, the lease only when ``renewed`` (an accepted, timely reply).

        An outage, and what its policy has let through, ends when the shard is ``granting`` again.
        """
        self.in_flight = False
        since = self.own - own_sent
        self.used = reply.spent + since
        self.ample = self.stop is None or self.stop - reply.spent - reply.held > AMPLE_LEASES * self.target
        self.over_ms = reply.over_ms
        self.known = self.heard = True
        if not self.leased:
            self.refused = False
            return
        if renewed:
            self.renewing = False
            if granting:
                self.outage_used = 0
                self.refused = False
            self.held_elsewhere = reply.held - reply.units
            self.left = max(0, reply.units - since)
            self.renew_at = min(self.target, self.left) // 3
            asked = sent.want > 0
            short = reply.units < sent.left + max(1, sent.need)
            self.contended_until_ms = now_ms + CONTENDED_FOR_MS if asked and short else 0
            if reply.called and not sent.need:
                # Somebody is short: keep what the next moment needs and give the rest back with the next report.
                reserve = self.rate_per_s * CALLED_RESERVE_MS // 1000
                if self.left > reserve:
                    self.left = reserve
                    self.known = False
        elif reply.units:
            # A repetition that overtook the message may have been granted these: say again what is left.
            self.known = False

    def forfeit(self) -> None:
        """Give up what is left, and say so in the next report.

        The cap was lowered, the period is over, or Redis may have given the units to others.
        """
        self.left = 0
        self.renew_at = 0
        self.known = False

    def depart(self) -> None:
        """Forfeit for good: who waited asks the limit that follows, so units granted for it would be nobody's."""
        self.forfeit()
        self.need = self.least = self.waiting = 0
