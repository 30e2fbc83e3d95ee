"""What the writers' scripts do to a shard, in Python: the generation, sync and retire.

It shares no code with them; periods come from catalogue/period.py, so that the scripts' own calendar is tested too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from sidecar.catalogue.model import Period
from sidecar.catalogue.period import bounds
from tests.properties.models.keys import Keys

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LONG_MS = 40 * DAY_MS
HOURS_DIRECT = 47
NO_END_MS = 10**15
LONGEST_MS = {"hour": 2 * DAY_MS, "day": 3 * DAY_MS, "month": 400 * DAY_MS, "billing": 400 * DAY_MS}

SHORTEST_MS = {"hour": HOUR_MS, "day": DAY_MS, "month": 28 * DAY_MS, "billing": 28 * DAY_MS, "lifetime": NO_END_MS}


class Limit(NamedTuple):
    name: str
    metric: str
    kind: str
    scoped: bool
    included: int
    stop: int


class Shard:
    """One shard. ``clock`` is the server's in ms, ``offset`` what a development clock adds to it."""

    def __init__(self, tag: str, clock: int) -> None:
        self.tag = tag
        self.keys = Keys()
        self.clock = clock
        self.offset = 0
        self.replid = "a"
        self.epoch = tag + "epoch"

    @property
    def now(self) -> int:
        return self.clock + self.offset

    @property
    def real(self) -> int:
        """Steady time, in which the server's clock never jumped."""
        return self.clock - self.keys.number(self.epoch, "skew")

    @property
    def generation(self) -> str:
        return self.keys.get(self.epoch, "gen") or ""

    @property
    def granting(self) -> bool:
        keys = self.keys
        return keys.get(self.epoch, "state") == "open" and self.real >= keys.number(self.epoch, "open_at")

    @property
    def direct(self) -> int:
        """The first hour whose windows move ``spent`` as they arrive."""
        return self.keys.number(self.epoch, "direct")

    def begin(self, fresh: str) -> None:
        """What every call starts with."""
        keys = self.keys
        keys.now = self.clock
        self.fresh = fresh
        if (seen := keys.get(self.epoch, "seen")) is not None:
            elapsed = self.clock - int(seen)
            if not -1000 <= elapsed <= 10_000:
                keys.grow(self.epoch, "skew", elapsed)
            keys.put(self.epoch, seen=self.clock)
        if not self.generation or keys.get(self.epoch, "replid") != self.replid:
            self.start_generation()
        elif self.now // HOUR_MS - HOURS_DIRECT > self.direct:
            self.keys.put(self.epoch, direct=self.now // HOUR_MS - HOURS_DIRECT)

    def start_generation(self) -> None:
        self.keys.put(
            self.epoch, gen=f"{self.fresh}-{self.clock * 1_000}", replid=self.replid, state="held", since=self.real,
            open_at=0, base=self.now // HOUR_MS - 2, seen=self.clock, direct=self.now // HOUR_MS - 2,
        )  # fmt: skip

    def silent(self, reclaim_after: int, most: int) -> list[str]:
        return self.keys.lowest(self.tag + "writers", most, self.real - reclaim_after)

    def limit_key(self, tenant: str, limit_id: str, start: int) -> str:
        return f"{self.tag}limit:{_escaped(tenant)}:{limit_id}:{start}"

    def window_key(self, tenant: str, member: str) -> str:
        return f"{self.tag}window:{_escaped(tenant)}:{member}"

    def windows_key(self, tenant: str) -> str:
        return f"{self.tag}windows:{_escaped(tenant)}"

    def tenant_key(self, tenant: str) -> str:
        return f"{self.tag}tenant:{_escaped(tenant)}"

    def open_limit(self, key: str, metric: str | None, ttl: int | None) -> None:
        keys = self.keys
        other = metric is not None and keys.get(key, "m") not in {None, metric}
        if keys.get(key, "g") != self.generation or other:
            keys.delete(key)
            keys.put(key, g=self.generation)
            if ttl is not None:
                keys.expire(key, ttl)
        if metric is not None:
            keys.put(key, m=metric)

    def spend(self, key: str, limit: Limit, units: int) -> None:
        self.open_limit(key, limit.metric, LONGEST_MS.get(limit.kind))
        self.count(key, limit, units)

    def count(self, key: str, limit: Limit | None, units: int) -> None:
        spent = self.keys.grow(key, "spent", units)
        if limit is not None and 0 <= limit.included < spent and self.keys.get(key, "over") is None:
            self.keys.put(key, over=self.now)

    def merge_window(self, tenant: str, window: tuple[str, int, int], writer: str, value: int) -> int:
        keys = self.keys
        member = ":".join(map(str, window))
        key = self.window_key(tenant, member)
        growth = value - keys.number(key, writer)
        if growth <= 0:
            return 0
        known = keys.number(key, "t")
        keys.put(key, **{writer: value, "t": known + growth})
        if not known:
            keys.expire(key, LONG_MS)
            index = self.windows_key(tenant)
            keys.rank(index, member, window[2])
            keys.expire(index, LONG_MS)
            for old in [old for old, at in keys.ranked[index].items() if at < min(window[2], self.direct)]:
                del keys.ranked[index][old]
        return growth

    def set_lease(self, key: str, writer: str, units: int) -> None:
        keys, held = self.keys, f"{self.tag}held:{writer}"
        small = keys.get(key, "small")
        current = keys.number(key, f"l:{writer}")
        if units == current:
            return
        keys.grow(key, "held", units - current)
        if units:
            keys.put(key, **{f"l:{writer}": units})
        else:
            keys.drop(key, f"l:{writer}")
        if not current:
            keys.grow(key, "n", 1)
            if not small:
                keys.sets.setdefault(held, set()).add(key)
        elif not units:
            keys.grow(key, "n", -1)
            keys.sets.get(held, set()).discard(key)

    def sync(self, reclaim_after: int, message: list[Any]) -> list[Any]:
        writer, sequence, generation, acknowledged, parts = message
        keys, record = self.keys, f"{self.tag}writer:{message[0]}"
        stored = keys.number(record, "seq") if keys.get(record, "gen") == self.generation else 0
        if generation == self.generation and acknowledged > stored:
            self.start_generation()
            stored = 0
        accepted = generation == self.generation and sequence > stored and not keys.get(record, "dead")
        if accepted:
            keys.put(record, gen=self.generation, seq=sequence)
            keys.expire(record, LONG_MS)
            keys.rank(self.tag + "writers", writer, self.real)
        version = keys.number(self.epoch, "version") + 1
        replies = [
            [own, [], keys.get(self.tenant_key(tenant), "doc")]
            if sequence and (own := int(keys.get(self.tenant_key(tenant), "rev") or -1)) > revision
            else self._sync_part(writer, accepted, version, reclaim_after, tenant, revision, *rest)
            for tenant, revision, *rest in parts
        ]
        watermark, version = keys.number(self.epoch, "watermark"), keys.number(self.epoch, "version")
        ranked = keys.ranked.get(self.tag + "called", {})
        called = [name for name in keys.lowest(self.tag + "called", 100) if ranked[name] >= self.real - 10_000]
        return [self.generation, self.granting, watermark, version, accepted, replies, self.now // HOUR_MS, called]

    def _sync_part(
        self, writer: str, accepted: bool, version: int, reclaim_after: int, tenant: str, revision: int,
        windows: list[Any], leases: list[Any],
    ) -> list[Any]:  # fmt: skip
        keys, key = self.keys, self.tenant_key(tenant)
        own = int(keys.get(key, "rev") or -1)
        if own > revision:
            return [own, []]
        limits = limits_of(keys.get(key, "lim"))
        if keys.get(key, "introduced"):
            keys.expire(key, DAY_MS)
        begins = False
        for series, period, hour, value in windows:
            anew = self.window_key(tenant, f"{series}:{period}:{hour}") not in keys.hashes
            growth = self.merge_window(tenant, (series, period, hour), writer, value)
            if not growth:
                continue
            begins = begins or anew
            keys.put(self.epoch, version=version)
            member = f"{series}:{period}:{hour}"
            keys.put(self.window_key(tenant, member), v=version)
            if f"{tenant}\0{member}" not in keys.ranked.get(self.tag + "dirty", {}):
                keys.rank(self.tag + "dirty", f"{tenant}\0{member}", version)
                keys.persist(self.window_key(tenant, member))
            if hour < self.direct:
                keys.put(key, aged=version)
            for limit, limit_id, start in fed(limits, series, period, hour):
                self.spend(self.limit_key(tenant, limit_id, start), limit, growth)
        current = own == revision
        return [
            own,
            [self._sync_lease(writer, accepted, current, begins, reclaim_after, limits, tenant, *it) for it in leases],
        ]  # fmt: skip

    def _sync_lease(  # noqa: PLR0917 - a lease as it is on the wire
        self, writer: str, accepted: bool, current: bool, begins: bool, reclaim_after: int, limits: list[Limit],
        tenant: str, name: str, limit_id: str, start: int, end_ms: int, small: bool, left: int, need: int, want: int,
        cumulative: int,
    ) -> list[Any]:  # fmt: skip
        keys = self.keys
        ttl = max(end_ms + 60_000 - self.now, 60_000) if small else end_ms + DAY_MS - self.now
        key = self.limit_key(tenant, limit_id, start)
        if ttl <= 0:
            if accepted and keys.get(key, "g") == self.generation:
                self.set_lease(key, writer, 0)
            return [0, 0, 0, 0, False]
        limit = next((limit for limit in limits if limit.name == name), None)
        if limit is None and not small and left <= 0 and keys.get(key, "g") is None:
            return [0, 0, 0, 0, False]
        former = limit is not None and end_ms - start * 1000 < SHORTEST_MS.get(limit.kind, 0)
        self.open_limit(key, limit.metric if limit else None, LONGEST_MS.get(limit.kind) if limit and former else None)
        goes_on = left > 0 and keys.number(key, f"l:{writer}") > 0 and self.now <= end_ms and not begins
        if end_ms < NO_END_MS and not former and not goes_on:
            keys.expire(key, ttl)
        if small:
            keys.put(key, small=1)
            if (growth := cumulative - keys.number(key, f"c:{writer}")) > 0:
                keys.put(key, **{f"c:{writer}": cumulative})
                self.count(key, limit, growth)
        if accepted:
            lease = keys.number(key, f"l:{writer}")
            self.set_lease(key, writer, max(0, min(lease, left)) if self.granting else left)
            known = small or end_ms > self.direct * HOUR_MS
            if current and limit is not None and limit.stop >= 0 and self.granting and known:
                self._grant(tenant, key, writer, limit.stop, need, max(want, need), reclaim_after)
        called = keys.number(key, "called") > self.real - 1000
        return [*(keys.number(key, field) for field in (f"l:{writer}", "spent", "held", "over")), called]

    def _grant(self, tenant: str, key: str, writer: str, stop: int, need: int, want: int, reclaim_after: int) -> None:
        keys, lease = self.keys, self.keys.number(key, f"l:{writer}")
        if keys.number(key, "called") > self.real - 1000:
            want = need
        if want <= 0:
            return
        if stop - keys.number(key, "spent") - keys.number(key, "held") < want:
            for other in self.silent(reclaim_after, 8):
                self.reclaim(key, other)
        room = stop - keys.number(key, "spent") - keys.number(key, "held")
        if room < need and need > 0:
            keys.put(key, called=self.real)
            told = keys.ranked.setdefault(self.tag + "called", {})
            for name in [name for name, since in told.items() if since < self.real - 10_000]:
                del told[name]
            keys.rank(self.tag + "called", tenant, self.real)
            keys.expire(self.tag + "called", HOUR_MS)
        if room <= 0:
            return
        lease = keys.number(key, f"l:{writer}")
        sharers = keys.number(key, "n") + (lease == 0)
        share = want if sharers == 1 else max(1, room // (2 * sharers))
        units = min(want, share, room)
        self.set_lease(key, writer, lease + (max(units, need) if need <= room else units))

    def reclaim(self, key: str, writer: str) -> None:
        if units := self.keys.number(key, f"l:{writer}"):
            self.set_lease(key, writer, 0)
            self.keys.grow(self.epoch, "lost", units)
            self.keys.grow(self.tag + "reclaimed", self.generation, units)

    def retire(self, writer: str, most: int, reclaim_after: int, popped: set[str], generation: str = "") -> int:
        """``popped``: which keys Redis took from the set; it may take any ``most`` of them."""
        if generation not in {"", self.generation}:
            assert not popped
            return -1
        keys, record = self.keys, f"{self.tag}writer:{writer}"
        lost = reclaim_after > 0
        if lost:
            heard = keys.ranked.get(self.tag + "writers", {}).get(writer, 0)
            if heard > self.real - reclaim_after:
                return 0
        else:
            keys.put(record, gen=self.generation, dead=1)
            keys.expire(record, LONG_MS)
        held = keys.sets.setdefault(f"{self.tag}held:{writer}", set())
        assert popped <= held
        assert len(popped) == min(most, len(held))
        held -= popped
        for key in popped:
            if keys.get(key, "g") == self.generation and not keys.get(key, "small"):
                if lost:
                    self.reclaim(key, writer)
                else:
                    self.set_lease(key, writer, 0)
        if not held:
            keys.ranked.get(self.tag + "writers", {}).pop(writer, None)
        return len(held)


def fed(limits: list[Limit], series: str, period: int, hour: int) -> Iterator[tuple[Limit, str, int]]:
    """The limits that a window counts for: limit, id and start of its period."""
    metric, _, scope = series.partition("@")
    for limit in limits:
        if limit.metric != metric or limit.kind in {"second", "minute"} or limit.scoped != bool(scope):
            continue
        if limit.scoped and not scope.startswith(f"{limit.name}:"):
            continue
        start = period if limit.kind == "billing" else bounds(cast("Period", limit.kind), hour * 3600)[0]
        yield limit, scope or limit.name, start


def limits_of(stored: str | None) -> list[Limit]:
    return [Limit(*limit) for limit in eval(stored)] if stored else []  # noqa: S307 - the model's own repr


def _escaped(tenant: str) -> str:
    return tenant.replace("%", "%25").replace(":", "%3A")
