"""Who is who: tenants in memory, loaded from Redis on first use and refreshed when a change is announced.

Guarantees: a change reaches cached tenants without their requests waiting; caches are bounded, unknown names too, and
            no number of unknown ones drives out a known one. Tenants that only the default plan knows are never more
            than ``tenants_max``: beyond it they are refused until one can be forgotten.
Gives up:   the bound, for tenants that the ledger knows and that still have something to report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from sidecar.catalogue.model import ANONYMOUS
from sidecar.catalogue.resolve import resolve
from sidecar.enforcement.account import Account
from sidecar.enforcement.api_keys import UNKNOWN_KEPT_MS, ApiKeys, remember
from sidecar.enforcement.turns import Turns
from sidecar.errors import ParentMissing, SidecarError, StoreRefused, StoreUnavailable
from sidecar.logs import fields
from sidecar.store import snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.catalogue.policy import Policy
    from sidecar.catalogue.snapshot import Snapshot
    from sidecar.clock import Clock
    from sidecar.enforcement.charge import Lineage
    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters

log = logging.getLogger(__name__)

REFRESHES_AT_ONCE = 4  # each is some tenths of a millisecond, in which no request is decided
LOOKED_THROUGH_AT_ONCE = 128
REFRESH_PAUSE_S = 0.2
# While more requests than this are decided, they come one at a time with pauses: each costs as much as twenty of those.
BUSY_PER_MS = 4
GIVE_WAY_S = 0.0015
EVICTION_LOOKS = 64
EVICTION_BATCH = 256


class Directory:
    """Accounts by tenant; ``keys`` has tenants by API key. ``policy`` is swapped by whoever reads the catalogue."""

    def __init__(
        self,
        exchanges: Sequence[ShardExchange],
        store: Store,
        clock: Clock,
        counters: CoreCounters,
        *,
        tenants_max: int,
        keys_max: int,
    ) -> None:
        self.policy: Policy | None = None
        self.accounts: dict[str, Account] = {}
        self._oldest: deque[Account] = deque()  # those that may be forgotten next
        self._exchanges = exchanges
        self._store = store
        self._clock = clock
        self._counters = counters
        self._tenants_max = tenants_max
        self._keys_max = keys_max
        self._unknown: OrderedDict[str, int] = OrderedDict()
        self._turns = Turns()
        self.keys = ApiKeys(store, clock, counters, self._turns, keys_max)
        self._without_room = 0
        self._loading: dict[str, asyncio.Task[Account | None]] = {}
        self._overtaken: set[str] = set()  # loads in flight whose answer may be from before an announced change
        self._refreshing: OrderedDict[str, None] = OrderedDict()
        self._refreshing_next: OrderedDict[str, None] = OrderedDict()
        for exchange in exchanges:
            exchange.accounts, exchange.due = self.accounts, self._refreshing
        self._wake = asyncio.Event()

    @property
    def strangers_refused(self) -> int:
        """Requests for names not in memory that had no turn to ask Redis, or no room."""
        return self._turns.refused + self._without_room

    def account(self, tenant: str) -> Account | None:
        """The tenant's account, if it is in memory and in force."""
        account = self.accounts.get(tenant)
        return None if account is None or account.withdrawn else account

    def readmit(self, account: Account) -> Account:
        """The account in force for a request that waited: another one, or this one again if it was dropped meanwhile.

        There is never a second account of a tenant in use, since two would count one window in two places.
        """
        return self.accounts.setdefault(account.tenant, account)

    def unknown(self, tenant: str) -> bool:
        """Whether Redis said a moment ago that nobody knows this tenant."""
        return self._unknown.get(tenant, 0) > self._clock.monotonic_ms()

    async def load(self, tenant: str) -> Account | None:
        """The account of a tenant, from Redis; None when nobody knows it. Requests for one tenant share the call.

        Raises StoreUnavailable when Redis cannot say (away, or not restored yet).
        """
        task = self._loading.get(tenant)
        if task is None:
            task = self._loading[tenant] = asyncio.get_running_loop().create_task(self._load(tenant))
            task.add_done_callback(lambda done: self._loaded(tenant, done))
        return await asyncio.shield(task)

    def provisional(self, tenant: str) -> Account | None:
        """An account made without Redis: the default plan, under which each limit follows its outage policy."""
        default = self._default(tenant)
        if default is None or not (tenant in self.accounts or tenant == ANONYMOUS or self._has_room()):
            return None
        account = self._admit(msgspec.structs.replace(default, rev=-1), None)
        account.provisional = True
        self.refresh(account)
        return account

    def refresh(self, account: Account) -> None:
        """Have the account's snapshot read again, in the background."""
        self._refreshing[account.tenant] = None
        self._wake.set()

    def renew(self, account: Account, document: bytes) -> None:
        """Put a newer snapshot in force of an account that is in use, and of which Redis takes no report until then.

        Without the document it is looked up, not behind all others. A look-up that is due anyway may bring another yet.
        """
        if document and self.accounts.get(account.tenant) is account:
            with contextlib.suppress(StoreRefused):
                snapshot = _decoded(account.tenant, document)
                named = _parent(snapshot)
                parent = self.account(named) if named else None
                if parent is not None or not named:
                    self._admit(snapshot, parent)
                    return
        self._refreshing_next[account.tenant] = None
        self.refresh(account)

    def changed(self, kind: str, name: str) -> None:
        """Take note of an announced change of a tenant or key."""
        if kind == "key":
            self.keys.changed(name)
        elif kind == "tenant":
            self._unknown.pop(name, None)
            if name in self._loading:
                self._overtaken.add(name)
            account = self.accounts.get(name)
            if account is not None:
                self._refresh_in_turn(account)

    def refused(self, account: Account, lineage: Lineage) -> None:
        """A request was refused by what is known of a tenant and its ancestors: what may have changed is read next."""
        for one in (account, *(ancestor for ancestor, _ in lineage)) if self._refreshing else ():
            if one.tenant in self._refreshing:
                self._refreshing_next[one.tenant] = None

    def _refresh_in_turn(self, account: Account) -> None:
        if account.exchange.uses(account):
            self._refreshing_next[account.tenant] = None
        self.refresh(account)

    async def changed_all(self) -> None:
        """Changes were missed: read everything again as it is needed."""
        self.keys.forget()
        await self._refresh_all(lambda _: True)

    async def changed_plans(self) -> None:
        """The catalogue is new: read tenants again that are not in the ledger; changes of the others are announced."""
        await self._refresh_all(lambda account: account.rev <= 0)

    async def _refresh_all(self, concerned: Callable[[Account], bool]) -> None:
        self._unknown.clear()
        self._overtaken.update(self._loading)
        for position, account in enumerate(list(self.accounts.values())):
            if concerned(account):
                self._refresh_in_turn(account)
            if position % LOOKED_THROUGH_AT_ONCE == 0:
                await asyncio.sleep(0)  # a decision may come between

    async def run(self) -> None:
        """Refresh accounts, a few at a time: those in use first, the others beside the requests that are decided."""
        at_once = REFRESHES_AT_ONCE
        while True:
            await self._wake.wait()
            batch = self._to_refresh(at_once)
            if not batch:
                self._wake.clear()
                continue
            began_ms, decided = self._clock.monotonic_ms(), self._counters.snapshot_hits
            results = await asyncio.gather(*(self._refresh(tenant) for tenant in batch))
            elapsed_ms = self._clock.monotonic_ms() - began_ms
            busy = self._counters.snapshot_hits - decided > BUSY_PER_MS * (elapsed_ms + 1)
            at_once = 1 if busy else REFRESHES_AT_ONCE
            if not any(results):
                await asyncio.sleep(REFRESH_PAUSE_S)
            elif busy and not self._refreshing_next:
                await asyncio.sleep(GIVE_WAY_S)

    def _to_refresh(self, most: int = REFRESHES_AT_ONCE) -> list[str]:
        """The next few: of several at most half are those in use, which may fail again and again."""
        in_use = islice(self._refreshing_next, max(1, most // 2))
        found = dict.fromkeys(chain(in_use, islice(self._refreshing, most)))
        return list(islice(found, most))

    async def _refresh(self, tenant: str) -> bool:
        account = self.accounts.get(tenant)
        # Taken out first: a change that is announced meanwhile puts it in again.
        self._refreshing.pop(tenant, None)
        self._refreshing_next.pop(tenant, None)
        try:
            if account is not None and await self._load(tenant) is None:
                self._withdraw(account)
        except StoreUnavailable:
            self._refreshing[tenant] = None  # at the end, so that it does not keep others waiting
            return False
        except StoreRefused as error:
            log.warning("snapshot refused", extra=fields(cause=str(error)))
        return True

    def _withdraw(self, account: Account) -> None:
        """The tenant is gone from Redis: what it counted is still reported, its requests are looked up again."""
        account.withdrawn = True
        account.drop_charges()
        account.forfeit()
        account.exchange.touch(account)

    async def _load(self, tenant: str) -> Account | None:
        # Without room a tenant that nobody knows is not introduced to Redis either.
        room = tenant in self.accounts or tenant == ANONYMOUS or self._has_room()
        default = self._default(tenant) if room else None
        arguments = None
        if default is not None:
            arguments = (self._revision(), snapshots.encode(default), snapshots.encode_limits(default))
        self._counters.snapshot_misses += 1
        async with self._turns.turn():
            found = await self._store.lookup(tenant, arguments)
        if found.revision < 0:
            if not found.restored:
                raise StoreUnavailable(f"Redis is being restored; tenant {tenant} is not back yet")
            if not room and self._default(tenant) is not None:
                raise self._no_room(tenant)
            self._remember_unknown(tenant)
            return None
        snapshot = _decoded(tenant, found.document)
        parent = None
        if named := _parent(snapshot):
            parent = self.account(named) or await self.load(named)
            if parent is None:
                raise ParentMissing(f"tenant {tenant} has the parent {named}, which Redis does not have yet")
        return self._admit(snapshot, parent)

    def _loaded(self, tenant: str, task: asyncio.Task[Account | None]) -> None:
        self._loading.pop(tenant, None)
        if tenant in self._overtaken:
            self._overtaken.remove(tenant)
            self._unknown.pop(tenant, None)
            account = self.accounts.get(tenant)
            if account is not None:
                self.refresh(account)
        if not task.cancelled():
            task.exception()  # retrieved here too: every waiter may be gone by now

    def _admit(self, snapshot: Snapshot, parent: Account | None) -> Account:
        account = self.accounts.get(snapshot.tenant)
        if account is None:
            if not self._has_room() and snapshot.rev <= 0 and snapshot.tenant != ANONYMOUS:
                raise self._no_room(snapshot.tenant)
            shard = self._store.keys.shard_of(snapshot.tenant)
            account = self.accounts[snapshot.tenant] = Account(snapshot, self._exchanges[shard], parent)
        elif snapshot.rev >= account.rev:
            account.parent = parent
            if account.adopt(snapshot) or account.provisional or account.withdrawn:
                account.exchange.touch(account)
        if parent is not None:
            parent.has_children = True
        account.provisional = False
        account.withdrawn = False
        return account

    def _has_room(self) -> bool:
        """Whether another account fits, if need be in place of one that has nothing left to report.

        Of those a few of the oldest are looked at only.
        """
        for _ in range(EVICTION_LOOKS):
            if len(self.accounts) < self._tenants_max:
                return True
            if not self._oldest:
                # Many at once: a dictionary looks for its first entries among all that were freed before them.
                self._oldest.extend(islice(self.accounts.values(), EVICTION_BATCH))
            account = self._oldest.popleft()
            if self.accounts.get(account.tenant) is not account:
                continue
            del self.accounts[account.tenant]
            if account.exchange.forget(account):
                account.drop_charges()
            else:
                self.accounts[account.tenant] = account
        return len(self.accounts) < self._tenants_max

    def _no_room(self, tenant: str) -> StoreUnavailable:
        self._without_room += 1
        return StoreUnavailable(f"there is no room for tenant {tenant}, which nobody knows")

    def _remember_unknown(self, tenant: str) -> None:
        remember(self._unknown, tenant, self._clock.monotonic_ms() + UNKNOWN_KEPT_MS, self._keys_max)

    def _revision(self) -> int:
        return self.policy.revision if self.policy is not None else 0

    def _default(self, tenant: str) -> Snapshot | None:
        """The snapshot of a tenant nobody knows, or of requests without identity; None: refuse it."""
        policy = self.policy
        if policy is None:
            return None
        plan = policy.catalogue.anonymous_plan if tenant == ANONYMOUS else policy.catalogue.default_plan
        if not plan:
            return None
        try:
            return resolve(
                policy.catalogue,
                tenant=tenant,
                rev=0,
                plan=plan,
                status="active",
                status_until_s=0,
                parent="",
                anchor_s=0,
                shadow=False,
                overrides={},
            )
        except SidecarError:
            return None


def _decoded(tenant: str, document: bytes) -> Snapshot:
    try:
        return snapshots.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreRefused(f"the snapshot of tenant {tenant} in Redis cannot be read: {error}") from error


def _parent(snapshot: Snapshot) -> str:
    """The tenant that takes part in what this one uses; empty where there is none."""
    return snapshot.parent if snapshot.parent != snapshot.tenant else ""
