"""What really happened, kept beside the program: every unit allowed, every cap that was in force, every exception.

Checks L1 at each admission. Exceptions to a cap are accounted to the unit when they arise: what a writer had spent and
not reported when Redis took its lease back, when a new generation began to grant, or when a limit came into being.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from sidecar.catalogue.model import Period
from sidecar.catalogue.period import bounds
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.usage.window import WindowKey
from tests.simulation.minutes import LimitKey, Minutes, is_small

if TYPE_CHECKING:
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.usage.window import Window
    from tests.simulation.redis import MemoryRedis

AWARE_WITHIN_MS = 6_000  # of a lower cap: a lease, a report that is refused, another lease_ttl
LOST_AWARE_WITHIN_MS = 16_000  # where a server may have the plan of before
RECORDS_KEPT_MS = 39 * 86_400_000  # what Redis knows of a writer expires
NEVER_MS = -(10**12)


class Oracle:
    """The truth of one run."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        shards: tuple[str, ...],
        note: Callable[[str], None],
        lived_ms: Callable[[], int] | None = None,
    ) -> None:
        """``lived_ms`` stands still while hours pass at once: nobody takes a step then, and a split brain goes on."""
        self.violations: list[str] = []
        self.counted: dict[str, dict[WindowKey, int]] = defaultdict(lambda: defaultdict(int))
        self.used: dict[tuple[str, str], dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        self.answered: dict[tuple[str, str], int] = defaultdict(int)
        self.unanswered: dict[tuple[str, str], int] = defaultdict(int)
        self.lost: dict[str, dict[WindowKey, int]] = {}  # writers whose disk went: what surely survived
        self.unleased: dict[LimitKey, int] = defaultdict(int)
        self.slack: dict[LimitKey, int] = defaultdict(int)
        self.reclaimed: dict[LimitKey, int] = defaultdict(int)
        self.reclaimed_from: dict[tuple[str, LimitKey], int] = defaultdict(int)
        self.reclaimed_in: dict[tuple[str, str], int] = defaultdict(int)  # by shard's tag and generation
        self.vanished_units: dict[tuple[str, LimitKey], int] = defaultdict(int)
        self.retiring: set[str] = set()  # writers whose own retirement a server has carried out
        self.snapshots: dict[str, Snapshot] = {}
        self.admitted = 0
        self.silent_after_ms = self.hold_ms = 0
        # By server: an old primary may hear who is unheard elsewhere.
        self._accepted: dict[tuple[str, str, str], int] = {}
        self._sequences: dict[tuple[str, str, str], int] = {}
        self._caps: dict[tuple[str, str], list[tuple[int, int, int | None]]] = defaultdict(list)
        self._now_ms = now_ms
        self._lived_ms = lived_ms or now_ms
        self._tags = shards
        self._note = note
        self._over: set[LimitKey] = set()
        self._places: dict[Window, WindowKey] = {}
        self._granting: set[tuple[str, str]] = set()
        self.minutes = Minutes(self.violated, note)

    def violated(self, invariant: str, about: str) -> None:
        self._note(f"VIOLATION {invariant}: {about}")
        self.violations.append(f"{invariant}: {about}")

    # What the program tells.

    def spent(self, writer: str, charge: Charge, unleased: set[LimitState], wall_ms: int) -> None:
        """A request was allowed and counted."""
        self.admitted += 1
        known, places = self.counted[writer], self._places
        for window, units in charge.windows or ():
            place = places.get(window) or places.setdefault(window, window.key)
            known[place] = allowed = known[place] + units
            self.used[place.tenant, place.series][place.period, place.hour] += units
            if window.view[window.index] != allowed:
                self.violated("C1", f"{place} of {writer} has {window.value} in its cell, {allowed} allowed")
        checked = set()
        for owner, state, units in charge.limits:
            if not state.period.leased or not units:
                continue
            key = (owner.tenant, state.id, state.period.start_s)
            checked.add((owner.tenant, state.rule.name, _shape(state.rule)))
            if state.period.small:
                self.minutes.spent(writer, key, state.period, units, wall_ms // 1000, leased=state not in unleased)
            if state in unleased:
                self.unleased[key] += units
            else:
                self._check(key, state)
                if writer in self.retiring:
                    self.violated("L1", f"{writer} spends {units} of a lease of {key} that its retirement freed")
        for owner, series, units in charge.series:
            snapshot = self.snapshots.get(owner.tenant)
            for rule in snapshot.limits if snapshot is not None else ():
                by_windows = rule.metric == series and rule.scope == "tenant" and not is_small(rule)
                if by_windows and (owner.tenant, rule.name, _shape(rule)) not in checked:
                    start = bounds(rule.period, wall_ms // 1000)[0]
                    self.slack[owner.tenant, rule.name, start] += units

    def _check(self, key: LimitKey, state: LimitState) -> None:
        cap = self.cap(key[0], state.rule.name)
        if cap is None:
            return
        if state.period.small:
            total, excepted = self.minutes.total(key), self.minutes.exceptions(key)
        else:
            total = self.total(key[0], state.rule, state.id, state.period.start_s)
            excepted = self.unleased[key] + self.slack[key]
        if total - excepted > cap and key not in self._over and total - excepted > self._in_force(key[0], state.rule):
            self._over.add(key)
            about = f"{key} has {total} of {cap} admitted; {excepted} are excepted, {self.reclaimed[key]} reclaimed"
            self.violated("L1", about)

    def total(self, tenant: str, rule: LimitRule, limit_id: str, start: int) -> int:
        """Everything allowed that feeds a limit in the period that starts at ``start``."""
        series = rule.metric if rule.scope == "tenant" else f"{rule.metric}@{limit_id}"
        total = 0
        for (period, hour), units in self.used[tenant, series].items():
            if _start(rule, period, hour) == start:
                total += units
        return total

    def cap(self, tenant: str, name: str) -> int | None:
        """The highest cap that a worker may still go by; None for no limit."""
        lost = self.lost_state()
        since = self._lived_ms() - LOST_AWARE_WITHIN_MS if lost else self._now_ms() - AWARE_WITHIN_MS
        highest = -1
        for at, lived_at, stop in reversed(self._caps[tenant, name]):
            if stop is None:
                return None
            highest = max(highest, stop)
            if (lived_at if lost else at) < since:
                break
        return highest if highest >= 0 else None

    def _in_force(self, tenant: str, rule: LimitRule) -> int:
        """The cap that the ledger says by now, published or not; -1 for none of such a limit."""
        found = (one for one in self.ledger_says(tenant) if one.name == rule.name and _shape(one) == _shape(rule))
        return max((one.stop for one in found if one.stop is not None), default=-1)

    def published(self, server: MemoryRedis, snapshot: Snapshot) -> None:
        """Redis is about to have another snapshot of a tenant."""
        before = self.snapshots.get(snapshot.tenant)
        if before is not None and (before.rev > snapshot.rev or before == snapshot):
            return
        self.snapshots[snapshot.tenant] = snapshot
        known = (
            {rule.name: _shape(rule) for rule in before.limits if rule.stop is not None} if before is not None else {}
        )
        present = {rule.name: rule for rule in snapshot.limits if rule.stop is not None}
        for name in known - present.keys():
            self._caps[snapshot.tenant, name].append((self._now_ms(), self._lived_ms(), None))
        for name, rule in present.items():
            self._caps[snapshot.tenant, name].append((self._now_ms(), self._lived_ms(), rule.stop))
            if known.get(name) != _shape(rule):  # under its name, another limit may count something else
                for writer in list(self.counted):
                    self._except(server, writer, snapshot.tenant, rule)

    def accepted(self, server: MemoryRedis, tag: str, writer: str, generation: str, sequence: int) -> None:
        """A server took a message of a writer for a sign of life."""
        lately = self._now_ms() - self.heard_ms(server, tag, writer) < RECORDS_KEPT_MS
        self._accepted[server.replid, tag, writer] = self._now_ms()
        known = self._sequences.get((tag, writer, generation), 0)
        if sequence <= known and lately:
            self.violated("L2", f"{writer} shows life in {generation} by message {sequence} after {known}")
        self._sequences[tag, writer, generation] = max(known, sequence)

    def _silent(self, server: MemoryRedis, tag: str, writer: str) -> bool:
        return self._now_ms() - self.heard_ms(server, tag, writer) >= self.silent_after_ms

    def heard_ms(self, server: MemoryRedis, tag: str, writer: str) -> int:
        """When this server last took a message of a writer for a sign of life."""
        return self._accepted.get((server.replid, tag, writer), NEVER_MS)

    # What Redis tells.

    def taken_back(self, server: MemoryRedis, key: bytes, field: bytes, units: int) -> None:
        """A script took back what was left in the field of a lease."""
        tenant, limit_id, start = parts(key)
        generation = server.command(b"HGET", (key, "g"))
        tag = key.decode().partition("limit:")[0]
        self.reclaimed_in[tag, server.command(b"HGET", (tag + "epoch", "gen")).decode()] += units
        self._reclaim(server, (tenant, limit_id, int(start)), generation, field[2:].decode(), units)

    def _reclaim(self, server: MemoryRedis, key: LimitKey, generation: bytes, writer: str, units: int) -> None:
        self.reclaimed[key] += units
        self.reclaimed_from[writer, key] += units
        snapshot = self.snapshots.get(key[0])
        rule = (
            next((rule for rule in snapshot.limits if rule.name == key[1].partition(":")[0]), None)
            if snapshot
            else None
        )
        if rule is None:
            self.slack[key] += units
            return
        silent = any(
            self._silent(server, tag, writer)
            for tag in self._tags
            if server.command(b"EXISTS", (f"{tag}tenant:{key[0]}",))
        )
        if is_small(rule):
            if silent:
                self.minutes.taken_back(key, generation, writer)
            return
        late = self.unreported(server, writer, key[0], rule).get((key[1], key[2]), 0)
        if writer in self.lost:
            return  # accounted for when it vanished
        if silent:
            self.slack[key] += min(late, units)
        self._note(f"Redis took {units} of {key} back from {writer}, which had spent {late} unreported")

    def grants(self, server: MemoryRedis, tag: str, generation: str) -> None:
        """A server was seen to grant: when a generation begins to, who was silent has exceptions."""
        if (tag, generation) in self._granting:
            return
        first = not any(known == tag for known, _ in self._granting)
        self._granting.add((tag, generation))
        state, since, open_at = server.command(b"HMGET", (f"{tag}epoch", "state", "since", "open_at"))
        if state != b"open":
            self.violated("L1", f"generation {generation} of {tag} grants while it is restored")
        elif not first and int(open_at) - int(since) < self.hold_ms:
            self.violated("L1", f"generation {generation} of {tag} grants after {int(open_at) - int(since)} ms")
        self._note(f"generation {generation} of {tag} begins to grant")
        for writer in list(self.counted):
            if writer in self.lost:
                self.vanished(server, writer)  # Redis may have forgotten what it had heard, and the ledger never did
                continue
            known = server.command(b"HGET", (f"{tag}writer:{writer}", "gen")) == generation.encode()
            if known or not self._silent(server, tag, writer):
                continue
            for tenant, snapshot in self.snapshots.items():
                if server.command(b"EXISTS", (f"{tag}tenant:{tenant}",)):
                    for rule in snapshot.limits:
                        self._except(server, writer, tenant, rule)

    def retired(self, server: MemoryRedis, writer: str) -> None:
        """A writer's death is reported: its leases are freed, so what it spent has to be known by now."""
        for tenant, snapshot in self.snapshots.items():
            for rule in snapshot.limits:
                if writer not in self.lost and self.unreported(server, writer, tenant, rule):
                    self.violated("L1", f"{writer} is retired before its windows of {tenant} {rule.name} are known")
                    return

    def vanished(self, server: MemoryRedis, writer: str) -> None:
        """A writer lost what it had not reported; its leases will be freed as if it had spent nothing more."""
        for tenant, snapshot in self.snapshots.items():
            for rule in snapshot.limits:
                for (limit_id, start), units in self.unreported(server, writer, tenant, rule).items():
                    key = (tenant, limit_id, start)
                    more = units - self.vanished_units[writer, key]
                    if rule.stop is not None and more > 0:
                        self.vanished_units[writer, key] += more
                        self.slack[key] += more
                        self._note(f"{more} of {key} vanished with {writer}")

    def _except(self, server: MemoryRedis, writer: str, tenant: str, rule: LimitRule) -> dict[tuple[str, int], int]:
        found = self.unreported(server, writer, tenant, rule)
        for (limit_id, start), units in found.items():
            self.slack[tenant, limit_id, start] += units
            self._note(f"{units} of {tenant} {limit_id} {start} by {writer} are not known to Redis")
        return found

    def unreported(self, server: MemoryRedis, writer: str, tenant: str, rule: LimitRule) -> dict[tuple[str, int], int]:
        """What a writer allowed of a limit and this server does not know, by id and start of the period."""
        found: dict[tuple[str, int], int] = defaultdict(int)
        if is_small(rule):
            return found  # no window tells of it
        for key, units in self.counted[writer].items():
            if key.tenant != tenant:
                continue
            metric, _, scope = key.series.partition("@")
            fits = scope.startswith(f"{rule.name}:") if rule.scope != "tenant" else not scope
            if metric != rule.metric or not fits:
                continue
            known = max(self._known(server, key, writer), self.ledger_has(key, writer))
            if units > known:
                found[scope or rule.name, _start(rule, key.period, key.hour)] += units - known
        return found

    lost_state: Callable[[], bool] = staticmethod(lambda: False)
    ledger_says: Callable[[str], tuple[LimitRule, ...]] = staticmethod(lambda _tenant: ())
    ledger_has: Callable[[WindowKey, str], int] = staticmethod(lambda _key, _writer: 0)

    def _known(self, server: MemoryRedis, key: WindowKey, writer: str) -> int:
        for tag in self._tags:
            name = f"{tag}window:{key.tenant}:{key.series}:{key.period}:{key.hour}"
            found = server.command(b"HGET", (name, writer))
            if found is not None:
                return int(found)
        return 0


def _shape(rule: LimitRule) -> tuple[str, str, str]:
    return rule.metric, rule.period, rule.scope


def _start(rule: LimitRule, period: int, hour: int) -> int:
    return period if rule.period == "billing" else _calendar_start(rule.period, hour)


@cache
def _calendar_start(period: Period, hour: int) -> int:
    return bounds(period, hour * 3600)[0]


def parts(key: bytes) -> list[str]:
    tenant, _, rest = key.partition(b":limit:")[2].decode().partition(":")
    limit_id, _, start = rest.rpartition(":")
    return [tenant, limit_id, start]
