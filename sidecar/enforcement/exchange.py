"""One writer's side of the sync protocol for one shard (docs/protocol.md): composes messages, takes over replies.

Guarantees: a tenant's part of a message is a consistent snapshot; a reply counts only if it answers the latest message
            and came in time; a new generation makes every kept window dirty again and reports every lease.
Gives up:   nothing is awaited or timed here; the synchroniser drives it, and so does the simulator.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from sidecar.enforcement.kept import Kept, owner
from sidecar.enforcement.rest import Resting
from sidecar.enforcement.sent import Sent
from sidecar.enforcement.succession import at_rest
from sidecar.enforcement.terms import Terms
from sidecar.enforcement.urgency import urgent
from sidecar.store.messages import LeaseReport, SyncMessage, SyncReply, TenantReply, TenantReport
from sidecar.usage.window import NO_MARK, Mark, Span, Window, WindowKey

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from sidecar.enforcement.account import Account
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.usage.journal import Journal

TENANTS_PER_SYNC = 200
# One script call has to end well within the store's timeout, whatever one tenant has.
WINDOWS_PER_SYNC = 250
LIMITS_PER_SYNC = 250
WOKEN_PER_SYNC = 20
WOKEN_UNUSED = 10  # where nobody asks for anything, so that a hundred thousand leases cost little as they go back
# A writer whose record Redis may have dropped must not take that for lost state (records live for 40 days).
HEARD_MS = 1_000
ACKNOWLEDGED_KEPT_MS = 86_400_000
MARKED_TOGETHER_MS = 1_000


class ShardExchange:
    """State of one shard at one writer."""

    def __init__(self, shard: int, writer: str, journal: Journal, terms: Terms) -> None:
        self.shard = shard
        self.writer = writer
        self.terms = terms
        self.generation = ""
        self.granting = False
        self.valid_until_ms = 0
        self.gone_after_ms = 0
        self.watermark = 0
        self.hour = 0  # the current hour (unix s // 3600, wall), set by whoever drives this
        self.wall_s = 0  # the wall clock (unix s), likewise; limits whose period ended by it go on in the next one
        self.redis_hour = 0  # the same by Redis' clock, at the last reply
        self.closing = False
        self.ended = False  # everything is reported and the leases are about to be freed: none is taken any more
        self.ample = False  # of everything in the last message Redis has plenty, so the next one can wait
        self.spaced = False  # and does, as whoever drives this has decided
        self.backlogged = False
        self.composed_ms = 0
        self.stale: list[tuple[Account, bytes]] = []  # with the newer snapshot, if Redis sent it
        self.accounts: Mapping[str, Account] = {}  # by tenant; whoever looks tenants up lends its own
        self.due: Container[str] = ()  # tenants to be looked up again, likewise
        self.charges: dict[tuple[Account, str, str, str], Charge] = {}  # a memo of its accounts
        self.generation_changes = 0
        self.replies_unused = 0
        self._forfeits = 0
        self._mark, self._marks_until_ms = NO_MARK, 0
        self._journal = journal
        self._sequence = 0
        self._acknowledged = 0
        self._replied_ms = 0
        self._heard_ms = -HEARD_MS
        self._touched: dict[Account, None] = {}
        self._holders: dict[Account, None] = {}
        self._refused_since_ms: dict[Account, int] = {}
        self.resting = Resting(terms.lease_rest_ms)  # holders that are not reported
        self.kept = Kept(journal)  # windows that are still in the journal

    @property
    def busy(self) -> bool:
        """Whether there is anything to tell Redis or to hear from it."""
        return bool(self._touched or self._holders or self.resting or len(self.kept))

    @property
    def pressing(self) -> bool:
        """Whether there is something that should not wait for the slow poll of the watermark."""
        return bool(self._touched or self._holders)

    @property
    def rounds(self) -> int:
        """Syncs that are enough to report everything counted so far."""
        if not self.pressing:
            return 0
        accounts = self._touched | self._holders
        windows = sum(len(account.windows) for account in accounts)
        limits = sum(len(account.limits) + len(account.departed) for account in accounts)
        return len(accounts) // TENANTS_PER_SYNC + windows // WINDOWS_PER_SYNC + limits // LIMITS_PER_SYNC + 3

    @property
    def in_ledger(self) -> bool:
        """Whether the ledger has every window that is kept."""
        return all(window.in_ledger(self.watermark) for window in self.kept)

    @property
    def held_off(self) -> bool:
        """Whether Redis grants nothing for now, because it lost state and is being restored."""
        return bool(self.generation) and not self.granting

    def heard_lately(self, now_ms: int) -> bool:
        """Whether Redis answered within the last HEARD_MS, so that asking again can wait for the next sync."""
        return now_ms - self._heard_ms < HEARD_MS

    def holding(self) -> Iterator[Account]:
        """Those with leases in hand. Decisions may come between two."""
        return chain(tuple(self._holders), self.resting)

    def unreported(self) -> tuple[Account, ...]:
        """Those of which the next messages speak."""
        return tuple(self._touched)

    def return_leases(self) -> None:
        """Lower every lease to nothing and ask for no more; the next messages say so."""
        self.closing = True
        self._forfeit()

    def touch(self, account: Account) -> None:
        """Something about the account changed since its last report."""
        account.touched = True
        self._touched[account] = None

    def uses(self, account: Account) -> bool:
        """Whether requests spend of it at the moment, as far as the last two messages tell."""
        return account.touched or account in self._holders

    def forget(self, account: Account) -> bool:
        """Drop an account if nothing of it is to be reported or kept, or on its way here; returns whether it was."""
        needed = account.touched or account.windows or account.departed or account.has_children
        if needed or account in self._holders or account in self.resting:
            return False
        if any(state.left or state.lease.in_flight for state in account.states()):
            return False
        self._refused_since_ms.pop(account, None)
        return True

    def window(self, account: Account, span: Span) -> Window:
        """The window of a tenant's (series, period, hour), with its journal cell; made on first use."""
        window = account.windows.get(span)
        if window is None:
            key = WindowKey(account.tenant, *span)
            window = Window(account, span, self._journal.cell(key.encode()))
            account.windows = account.windows.put(window)
            self.kept.add(window)
        return window

    def spendable(self, now_ms: int) -> bool:
        """Whether leases may be spent now; beyond ``reclaim_after`` they are gone for good."""
        if now_ms < self.valid_until_ms:
            return True
        if self.gone_after_ms and now_ms >= self.gone_after_ms:
            self.gone_after_ms = 0
            self._forfeit()
        return False

    def _forfeit(self) -> None:
        """Give up every lease."""
        self._forfeits += 1
        self._wake(self.resting.wake_all())
        for account in self._holders:
            account.forfeit()
            self.touch(account)

    def _wake(self, accounts: Iterable[Account]) -> None:
        for account in accounts:
            self._holders[account] = None
            self.touch(account)

    def _called(self, tenants: list[str]) -> None:
        """Somebody is short of units of these: what is at rest here goes back with the next message."""
        named = (account for tenant in tenants if (account := self.accounts.get(tenant)) is not None)
        called = [account for account in named if self.resting.wake(account)]
        for account in called:
            account.forfeit()
        self._wake(called)
        self.ample = self.ample and not called

    def reports(self, now_ms: int) -> Iterator[Sent]:
        """What the next message says: touched tenants first, then holders of leases, as many as its bounds allow.

        Each is consistent in itself: decisions may come between two. ``backlogged`` says afterwards that more waits.
        """
        self.spendable(now_ms)
        self.composed_ms = now_ms
        # Leases of the next second or minute are asked for ahead only where tenants are in use.
        used = bool(self._touched)
        most = WOKEN_PER_SYNC if used else WOKEN_UNUSED
        self._wake(self.resting.wake_due(now_ms, self.wall_s, most, used=used))
        # Not counting those whose reports Redis refuses: they would be said again and again.
        self.backlogged = len(self._touched) - len(self._refused_since_ms) > TENANTS_PER_SYNC
        accounts = dict.fromkeys(islice(self._touched, TENANTS_PER_SYNC))
        accounts |= dict.fromkeys(islice(self._holders, TENANTS_PER_SYNC - len(accounts)))
        windows, limits = WINDOWS_PER_SYNC, LIMITS_PER_SYNC
        spoke: set[Account] = set()
        for account in accounts:
            if windows <= 0 or limits <= 0:
                # Holders that have nothing new wait for the next one; so do those that just spoke, unless they said so.
                told = spoke | self._refused_since_ms.keys()
                self.backlogged = self.backlogged or not told.issuperset(self._touched)
                break
            spoke.add(account)
            yield (one := self._report(account, now_ms, windows, limits))
            windows, limits = windows - len(one.windows), limits - len(one.limits)

    def message(self, sent: list[Sent], now_ms: int) -> SyncMessage:
        """The next message, which says that."""
        self._sequence += 1
        if now_ms - self._replied_ms > ACKNOWLEDGED_KEPT_MS:
            self._acknowledged = 0
        parts: list[TenantReport] = []
        for account, revision, windows, limits, _ in sent:
            values = [(*window.id, value) for window, value in windows]
            parts.append(TenantReport(account.tenant, revision, values, [report for _, report, _ in limits]))
        return SyncMessage(self.writer, self._sequence, self.generation, self._acknowledged, parts)

    def _report(self, account: Account, now_ms: int, windows_max: int, limits_max: int) -> Sent:
        """What a message says of one tenant; what does not fit stays for the next one, and the tenant touched.

        A limit is never reported without the windows that feed it, or spent units would look unspent.
        """
        account.roll(self.wall_s, now_ms, limits_max)
        if not self.closing:
            account.look_ahead(self.wall_s, now_ms)
        account.touched = False
        self._touched.pop(account, None)
        if self.resting.wake(account):
            self._holders[account] = None
        # Rotate, so that holders beyond one message get their turn. It stays a holder meanwhile: what it holds may have
        # to be forfeited before the reply comes.
        if account in self._holders:
            del self._holders[account]
            self._holders[account] = None
        windows = [window for window in account.windows.values() if window.dirty]
        omitted: set[str] = set()
        if len(windows) > windows_max:
            windows.sort(key=lambda window: "@" in window.id[0])  # the tenant's own first: few, and they feed most
            omitted.update(window.id[0] for window in windows[windows_max:])
            del windows[windows_max:]
        leaving = dict.fromkeys(state for state in account.departed if not account.replaced(state))
        account.departed = ()
        speaking = [*leaving, *(state for state in account.states() if self._to_report(state, now_ms))]
        if len(speaking) > limits_max:
            # Who waits must not wait for another message, nor who may have to soon.
            speaking.sort(key=lambda state: (not state.lease.need, not state.lease.renewing))
        alone = set(omitted)  # of which no limit tells since when they wait
        pressing = False
        limits: list[tuple[LimitState, LeaseReport, int]] = []
        for state in speaking:
            if len(limits) >= limits_max or state.period.series in omitted:
                omitted.add(state.period.series)
                alone.discard(state.period.series)
                pressing = pressing or state in leaving or urgent(state, now_ms, self.terms.lease_rest_ms)
                continue
            limits.append((state, self._lease_report(state, now_ms, renewing=state not in leaving), state.own))
        departed = dict.fromkeys(state for state, _, _ in limits if state in leaving)
        account.departed += tuple(state for state in leaving if state not in departed)
        if omitted:
            account.rotate(windows, [state for state, _, _ in limits])
            # What was said lately waits, and what is only held: there would be no end to it.
            self.backlogged = self.backlogged or pressing or bool(alone)
            self.touch(account)
        return Sent(account, account.rev, [(window, window.value) for window in windows], limits, tuple(departed))

    def _to_report(self, state: LimitState, now_ms: int) -> bool:
        unused_ms = now_ms - state.lease.own_changed_ms
        return state.to_report and not (at_rest(state) and unused_ms < self.terms.lease_rest_ms)

    def _lease_report(self, state: LimitState, now_ms: int, *, renewing: bool) -> LeaseReport:
        bounds = self.terms.lease_seconds, self.terms.lease_units_max, self.terms.lease_rest_ms
        return state.report(now_ms, *bounds, renewing=renewing and not self.closing, spaced=self.spaced)

    def applied(
        self, message: SyncMessage, sent: list[Sent], reply: SyncReply, sent_ms: int, now_ms: int
    ) -> Iterator[Sent]:
        """Take over a reply, tenant by tenant: where it renews, decisions may come between two.

        ``sent_ms``: when the message was sent (monotonic). What comes after leases were given up meanwhile (a process
        that slept through ``reclaim_after``, or is to end) brings none.
        """
        timely = message.sequence == self._sequence and now_ms - sent_ms < self.terms.lease_ttl_ms
        if not timely:
            self.replies_unused += 1
            self.undo(sent)
            return
        self._heard_ms = now_ms
        self.redis_hour = reply.hour
        self.watermark = reply.watermark
        self.granting = reply.granting
        renewed = reply.accepted and reply.generation == self.generation
        if renewed:
            # Only what Redis took note of: a sequence it refused must not look like one it lost.
            self._acknowledged = message.sequence
            self._replied_ms = now_ms
            self.valid_until_ms = sent_ms + self.terms.lease_ttl_ms
            self.gone_after_ms = sent_ms + self.terms.reclaim_after_ms
        self.ample = renewed and reply.granting
        self._confirmed(reply.version, now_ms)
        self._called(reply.called)  # first: what this very reply grants is for those who wait for it
        forfeits = self._forfeits
        for one, part in zip(sent, reply.parts, strict=True):
            if part.revision != one.revision or (part.revision <= 0 and one.account.tenant in self.due):
                # A newer snapshot is or may be there (the introduced have one revision), or the tenant is gone.
                self.stale.append((one.account, part.document))
            if part.revision > one.revision or one.account.rev != one.revision:
                # Without effect, or from before a snapshot that came meanwhile and may have lowered a cap.
                self.ample = False
                self._reject(one)
                self._refused(one.account, sent_ms, now_ms)
            elif forfeits != self._forfeits:
                self._reject(one)
            else:
                self._take_over(one, part, now_ms, renewed=renewed)
            if renewed:
                yield one
        if reply.generation != self.generation:
            self._start_over(reply.generation)
        self.kept.release(self.hour, self.redis_hour, self.watermark)

    def _refused(self, account: Account, sent_ms: int, now_ms: int) -> None:
        """A tenant whose part has no effect is not renewed by syncs of its shard: leases end after ``lease_ttl``."""
        if now_ms - self._refused_since_ms.setdefault(account, sent_ms) >= self.terms.lease_ttl_ms:
            account.forfeit()

    def _confirmed(self, version: int, now_ms: int) -> None:
        """Mark what Redis confirms within a second together, though by the last of it: there are very many windows."""
        if now_ms >= self._marks_until_ms:
            self._mark, self._marks_until_ms = Mark(), now_ms + MARKED_TOGETHER_MS
        self._mark.version = max(self._mark.version, version)

    def _take_over(self, one: Sent, part: TenantReply, now_ms: int, *, renewed: bool) -> None:
        account = one.account
        self._refused_since_ms.pop(account, None)
        for window, value in one.windows:
            window.acknowledged = value
            window.mark = self._mark
        taken = renewed and not self.ended
        for (state, report, own), lease in zip(one.limits, part.leases, strict=True):
            ample = state.settle(report, own, lease, now_ms, renewed=taken, granting=self.granting)
            self.ample = self.ample and ample
        dirty = any(window.dirty for window, _ in one.windows)
        waits = not self.closing  # for an outage to end: who stops refuses nobody any more
        if dirty or any((waits and state.lease.refused) or not state.known for state, _, _ in one.limits):
            self.touch(account)
        holding = any(state.left for state in account.states())
        may_rest = renewed and self.granting and not self.closing
        resting = holding and may_rest and self.resting.lay(account, now_ms, self.wall_s)
        if holding and not resting:
            self._holders[account] = None
        else:
            self._holders.pop(account, None)
        if one.departed and not (renewed or self.ended):  # or it holds nothing, and nobody will accept it
            account.departed += one.departed
            self.touch(account)

    def undo(self, sent: list[Sent]) -> None:
        """The message may or may not have arrived: everything it said is to be said again.

        Not at once, however low a lease is, unless somebody waits: a Redis that is late would get a call a request.
        """
        self.ample = False
        for one in sent:
            self._reject(one, renewing=True)

    def _reject(self, one: Sent, *, renewing: bool = False) -> None:
        for state, _, _ in one.limits:
            state.reject(renewing=renewing)
        one.account.departed += one.departed
        if any(state.left for state in one.account.states()):
            self._holders[one.account] = None
        self.touch(one.account)

    def _start_over(self, generation: str) -> None:
        """Redis lost its state: forget every acknowledgement, report every window that is kept and every lease."""
        if self.generation:
            self.generation_changes += 1
        self.generation = generation
        self._acknowledged = 0
        self._marks_until_ms = 0
        for window in self.kept:
            window.acknowledged = 0
            window.mark = NO_MARK
            self.touch(owner(window))
        self._wake(self.resting.wake_all())
        for account in self._holders:
            self.touch(account)
        for account in self._touched:
            for state in account.states():
                state.known = False
