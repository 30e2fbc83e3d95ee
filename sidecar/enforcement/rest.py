"""Leases at rest: those of which a writer need not speak for a while, because they are small and Redis has plenty.

A writer with a long tail of tenants would have to ask anew for each that comes back after a few seconds, and to report
each of thousands twice a second if it kept their leases as it keeps others.

Guarantees: nothing is at rest for longer than ``rest_ms`` after its last use, but for what more there is than messages
            have room for; nothing is reported of a lease only because its second or minute ended.
Gives up:   units that rest here are missing elsewhere until somebody calls for them (docs/protocol.md).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from sidecar.enforcement.lease import REST_GRAIN_MS, coarse
from sidecar.enforcement.limit_state import IDLE_AFTER_MS
from sidecar.enforcement.succession import goes_on, has_next, holding, lapse, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.enforcement.account import Account
    from sidecar.enforcement.limit_state import LimitState

LOOKED_AT_ONCE = 200
LOOKED_UNUSED = 50


class Resting:
    """The accounts of one shard whose leases are at rest: those with a ``rests_until_ms``.

    It is negative while an account that woke is still listed for that time, so that it is not listed twice.
    """

    def __init__(self, rest_ms: int) -> None:
        self.rest_ms = rest_ms
        self._count = 0
        # By the time until which they may rest, since that is the same for most in a message. Who did not rest for so
        # long stays in it until then.
        self._due: dict[int, tuple[int, list[Account]]] = {}
        self._times: list[int] = []  # a heap of these times

    def __bool__(self) -> bool:
        return self._count > 0

    def __contains__(self, account: Account) -> bool:
        return account.rests_until_ms > 0

    def __iter__(self) -> Iterator[Account]:
        """All of them, a few at a time: decisions may come between two."""
        for until_ms, due in tuple(self._due.values()):
            yield from (account for account in dict.fromkeys(due) if account.rests_until_ms == until_ms)

    def lay(self, account: Account, now_ms: int, wall_s: int) -> bool:
        """Let the leases of an account rest, if all of them may; returns whether they do."""
        held = [state for state in account.states() if state.left]
        if self.rest_ms <= IDLE_AFTER_MS or not all(state.at_rest for state in held):
            return False
        self._put(account, self._until_ms(held, now_ms, wall_s))
        for state in held:
            state.lay()
        return True

    def _until_ms(self, held: list[LimitState], now_ms: int, wall_s: int) -> int:
        """Until when leases rest."""
        until_ms = coarse(min(state.lease.own_changed_ms for state in held) + self.rest_ms)
        ends_s = min((state.period.end_s for state in held if state.period.small), default=0)
        if ends_s:  # and no sooner than that, or a report would speak of a period that is not over
            until_ms = min(until_ms, coarse(now_ms + max(0, ends_s - wall_s) * 1000 + REST_GRAIN_MS - 1))
        return until_ms

    def _put(self, account: Account, until_ms: int) -> None:
        found = self._due.get(until_ms)
        if found is None:
            found = self._due[until_ms] = (until_ms, [])
            heappush(self._times, until_ms)
        self._count += account not in self
        if abs(account.rests_until_ms) != until_ms:
            found[1].append(account)
        account.rests_until_ms = found[0]  # one object for all of them

    def wake(self, account: Account) -> bool:
        """Whether an account was at rest; it no longer is."""
        if account not in self:
            return False
        account.rests_until_ms = -account.rests_until_ms
        self._count -= 1
        return True

    def wake_all(self) -> list[Account]:
        accounts = [account for account in list(self) if self.wake(account)]
        for _, due in self._due.values():
            for account in due:
                account.rests_until_ms = 0
        self._due.clear()
        self._times.clear()
        return accounts

    def wake_due(self, now_ms: int, wall_s: int, most: int, *, used: bool) -> list[Account]:
        """Those that were at rest for long enough, ``most`` of them.

        Where a period ended they wake only if ``used``: if tenants of the shard are asking, these may be next.
        """
        found: list[Account] = []
        looks = LOOKED_AT_ONCE if used else LOOKED_UNUSED
        while looks and len(found) < most and self.overdue(now_ms):
            until_ms = self._times[0]
            due = self._due[until_ms][1]
            while due and looks and len(found) < most:
                account = due.pop()
                if account.rests_until_ms == until_ms:
                    looks -= 1
                    if not self._rests_on(account, now_ms, wall_s, used=used):
                        self.wake(account)
                        found.append(account)
                if account.rests_until_ms == -until_ms:
                    account.rests_until_ms = 0
            if not due:
                del self._due[heappop(self._times)]
        return found

    def _rests_on(self, account: Account, now_ms: int, wall_s: int, *, used: bool) -> bool:
        """Whether all that happened is that periods ended: what is left of them is dropped, what is ahead goes on.

        Where tenants are in use a lease that is not there yet is asked for, if this one may be the next.
        """
        ended = [state for state in account.limits.values() if state.period.over(wall_s) and holding(state)]
        for state in ended:
            if not settled(state) or (used and goes_on(state, now_ms) and not has_next(state, wall_s)):
                return False
        for state in ended:
            if has_next(state, wall_s):
                account.go_on(state, wall_s)
            else:
                lapse(state)
        held = [state for state in account.states() if state.left]
        until_ms = self._until_ms(held, now_ms, wall_s) if held else 0
        if held and until_ms <= now_ms:
            return False
        self.wake(account)
        if held:
            self._put(account, until_ms)
        for state in held:
            state.lay()
        return True

    def overdue(self, now_ms: int) -> bool:
        """Whether there may be more that were at rest for long enough."""
        return bool(self._times) and self._times[0] <= now_ms
