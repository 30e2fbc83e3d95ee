"""What the flusher's scripts and the look-ups do to a shard, in Python."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from sidecar.catalogue.period import bounds
from tests.properties.models.shard import (
    DAY_MS,
    HOUR_MS,
    HOURS_DIRECT,
    LONG_MS,
    LONGEST_MS,
    NO_END_MS,
    Limit,
    Shard,
    fed,
    limits_of,
)

if TYPE_CHECKING:
    from sidecar.catalogue.model import Period


def collect(shard: Shard, ledger_epoch: int, most: int, reclaim_after: int) -> list[Any]:
    keys = shard.keys
    intent, epoch = keys.number(shard.epoch, "intent"), keys.number(shard.epoch, "epoch")
    version = keys.number(shard.epoch, "version")
    told = keys.hashes.get(shard.tag + "reclaimed", {})
    reclaimed = [(name, int(units)) for name, units in told.items()]
    if ledger_epoch > intent:
        if keys.get(shard.epoch, "state") == "open":
            shard.start_generation()
        keys.put(shard.epoch, epoch=ledger_epoch)
    number = 0
    if most:
        number = max(keys.number(shard.epoch, "pass") + 1, shard.real)
        keys.put(shard.epoch, intent=max(ledger_epoch + 1, epoch + 1, intent), **{"pass": number})
    windows = []
    for entry in keys.lowest(shard.tag + "dirty", most):
        tenant, _, member = entry.partition("\0")
        series, period, hour = member.rsplit(":", 2)
        values = dict(keys.hashes.get(shard.window_key(tenant, member), {}))
        values.pop("t", None)
        found = int(values.pop("v", 0))
        counts = {writer: int(value) for writer, value in values.items()}
        windows.append([tenant, series, int(period), int(hour), found, counts])
    begun_us = {name: int(name.rpartition("-")[2]) for name in told}
    last_us = max((us for us in begun_us.values() if us < (shard.clock - LONG_MS) * 1_000), default=0)
    for name in [name for name, us in begun_us.items() if us < last_us]:
        del told[name]
    state, base = keys.get(shard.epoch, "state"), keys.number(shard.epoch, "base")
    silent, dirty = shard.silent(reclaim_after, 16), len(keys.ranked.get(shard.tag + "dirty", {}))
    return [
        shard.generation, state, base, shard.direct, shard.real, epoch, list(chain(*reclaimed)), version, silent,
        windows, dirty, number,
    ]  # fmt: skip


def settle(shard: Shard, generation: str, epoch: int, windows: list[list[Any]]) -> int:
    keys, dirty = shard.keys, shard.keys.ranked.setdefault(shard.tag + "dirty", {})
    if generation != shard.generation:
        return -1
    for tenant, series, period, hour, version in windows:
        member = f"{series}:{period}:{hour}"
        key, entry = shard.window_key(tenant, member), f"{tenant}\0{member}"
        if int(keys.get(key, "v") or version) > version:
            if entry in dirty:
                dirty[entry] = max(dirty[entry], version + 1)
            continue
        dirty.pop(entry, None)
        keys.expire(key, (max(hour, shard.now // HOUR_MS) + HOURS_DIRECT + 2) * HOUR_MS - shard.now)
    if epoch > keys.number(shard.epoch, "epoch"):
        keys.put(shard.epoch, epoch=epoch)
    watermark = min(dirty.values()) - 1 if dirty else keys.number(shard.epoch, "version")
    keys.put(shard.epoch, watermark=watermark)
    return watermark


def merge(shard: Shard, generation: str, rows: list[list[Any]]) -> int:
    if generation != shard.generation:
        return -1
    for tenant, series, period, hour, writer, value in rows:
        growth = shard.merge_window(tenant, (series, period, hour), writer, value)
        counts = growth and hour >= shard.direct
        limits = limits_of(shard.keys.get(shard.tenant_key(tenant), "lim")) if counts else []
        for limit, limit_id, start in fed(limits, series, period, hour):
            shard.spend(shard.limit_key(tenant, limit_id, start), limit, growth)
    return 1


def resend(shard: Shard, windows: list[list[str]]) -> int:
    keys = shard.keys
    version, marked = keys.number(shard.epoch, "version") + 1, 0
    for tenant, member in windows:
        key, entry = shard.window_key(tenant, member), f"{tenant}\0{member}"
        if key in keys.hashes:
            keys.put(shard.epoch, version=version)
            keys.put(key, v=version)
            if entry not in keys.ranked.get(shard.tag + "dirty", {}):
                keys.rank(shard.tag + "dirty", entry, version)
            keys.persist(key)
            marked += 1
    return marked


def publish(shard: Shard, message: list[Any], document: str) -> int:
    tenant, revision, limits, generation, direct, older, version, number = message
    keys, key = shard.keys, shard.tenant_key(message[0])
    if generation != shard.generation or direct != shard.direct:
        return -1
    if keys.number(key, "aged") > version or keys.number(key, "pass") > number:
        return -2
    own = int(keys.get(key, "rev") or -1)
    if own > revision:
        return own
    before = limits_of(keys.get(key, "lim"))
    keys.put(key, rev=revision, doc=document, lim=[list(limit) for limit in limits], **{"pass": number})
    keys.drop(key, "introduced")
    keys.persist(key)
    in_force = limits_of(keys.get(key, "lim"))
    kinds = {limit.name: limit for limit in in_force}
    former = [limit for limit in before if limit.name in kinds and kinds[limit.name].kind != limit.kind]
    used: dict[str, list[Any]] = {}
    for limit_id, start, units, end_ms in zip(older[::4], older[1::4], older[2::4], older[3::4], strict=True):
        limit = next((limit for limit in in_force if limit.name == limit_id.partition(":")[0]), None)
        used[shard.limit_key(tenant, limit_id, start)] = [units, end_ms, limit]
    for member, at in keys.ranked.get(shard.windows_key(tenant), {}).items():
        if at < direct:
            continue
        series, period, hour = member.rsplit(":", 2)
        total = keys.number(shard.window_key(tenant, member), "t")
        for limit, limit_id, start in fed(in_force, series, int(period), int(hour)):
            longest = LONGEST_MS.get(limit.kind)
            end_ms = NO_END_MS if longest is None else shard.now + longest
            one = used.setdefault(shard.limit_key(tenant, limit_id, start), [0, end_ms, limit])
            one[0] += total
            one[2] = limit
        for limit, limit_id, start in fed(former, series, int(period), int(hour)):
            following = kinds[limit.name]
            if start > 0 and begins(following, start):
                begun = following.kind != "billing" or start == int(period)
                end_ms = shard.now + LONGEST_MS[following.kind] if begun else shard.now
                used.setdefault(shard.limit_key(tenant, limit_id, start), [0, end_ms, following])
    for name, (units, end_ms, limit) in used.items():
        _rebuild(shard, name, units, end_ms, limit)
    return int(revision)


def begins(limit: Limit, at_s: int) -> bool:
    """Whether a period of the limit begins then, as far as a script can tell."""
    if limit.kind in {"second", "minute", "lifetime"}:
        return False
    return limit.kind == "billing" or bounds(cast("Period", limit.kind), at_s)[0] == at_s


def _rebuild(shard: Shard, key: str, units: int, end_ms: int, limit: Limit | None) -> None:
    keys, ttl = shard.keys, end_ms + DAY_MS - shard.now
    if ttl <= 0:
        return
    shard.open_limit(key, limit.metric if limit else None, None)
    keys.put(key, spent=units)
    if limit and limit.included >= 0:
        if units <= limit.included:
            keys.drop(key, "over")
        elif keys.get(key, "over") is None:
            keys.put(key, over=shard.now)
    if end_ms < NO_END_MS:
        keys.expire(key, ttl)


def open_(shard: Shard, generation: str, *, first: bool, reclaim_after: int, hold: str, writers: list[str]) -> int:
    keys = shard.keys
    if generation != shard.generation:
        return -1
    since = keys.number(shard.epoch, "since")
    open_at = since + reclaim_after
    seen = keys.ranked.get(shard.tag + "writers", {})
    awaited = [*writers, *(writer for writer, at in seen.items() if at >= since - reclaim_after)]
    records = [f"{shard.tag}writer:{writer}" for writer in awaited]
    reported = all(keys.get(one, "gen") == generation or keys.get(one, "dead") for one in records)
    if first or (hold == "reported" and shard.real < open_at and reported):
        open_at = shard.real
    keys.put(shard.epoch, state="open", open_at=open_at)
    return open_at


def lookup(shard: Shard, tenant: str, default: tuple[int, str, list[Any]] | None) -> list[Any]:
    keys, key = shard.keys, shard.tenant_key(tenant)
    revision, introduced = int(keys.get(key, "rev") or -1), keys.get(key, "introduced")
    state = keys.get(shard.epoch, "state")
    stale = default is not None and introduced is not None and int(introduced) < default[0]
    if (revision < 0 or stale) and default is not None and state == "open":
        keys.put(key, rev=0, doc=default[1], lim=default[2], introduced=default[0])
        keys.expire(key, DAY_MS)
        return [state, 0, default[1]]
    return [state, revision, keys.get(key, "doc")]


def find_key(shard: Shard, sha256: str) -> list[Any]:
    return [shard.keys.get(shard.epoch, "state"), shard.keys.strings.get(f"{shard.tag}key:{sha256}", "")]
