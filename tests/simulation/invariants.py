"""What must hold when everything has healed and come to rest: C1, C3, L2, L3, and that all parts agree on the plans."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator

from sidecar.catalogue.period import bounds
from sidecar.store import snapshots
from sidecar.usage.journal import SUFFIX
from tests.simulation.caps import check_caps_usable
from tests.simulation.catalogues import TEXTS, catalogue
from tests.simulation.minutes import is_small
from tests.simulation.network import REPEATED_WITHIN_MS
from tests.simulation.oracle import parts
from tests.simulation.worker import SHARDS, TERMS
from tests.simulation.world import TENANTS, World

SETTLED_MS = TERMS.reclaim_after_ms * 2 + 4_000
PATIENT = 0.1  # how many runs wait that long in any case: what is under way arrives within
LOOK_MS = 500
IDLE_MS = TERMS.lease_rest_ms + 6_000
TAKEN_BACK_MS = TERMS.reclaim_after_ms * 3 // 2 + 2_000  # the flusher looks that often, and its pass takes a moment
LATEST_MS = max(REPEATED_WITHIN_MS) + TAKEN_BACK_MS  # a message of the dead that comes last may bring them a lease
STOP_MS = 8_000
FLUSHED_MS = 6_000  # some passes of the flusher
PERIODS = {limit.name: limit.period for plan in catalogue(TEXTS[0]).plans.values() for limit in plan.limits}


def heal(world: World) -> None:
    """Let every fault end, and time pass until all of it is made good."""
    world.note("everything heals")
    for planned in world.planned:
        planned.cancel()
    world.network.heal()
    world.network.fuses.clear()
    world.ends.clear()
    world.network.stalls.clear()
    world.network.traps.clear()
    world.redis.up = world.postgres.up = True
    for process in [*world.flushers, *(worker.process for worker in world.workers())]:
        if process not in world.asleep:  # who sleeps on a lease wakes in time
            world.loop.resume(process)
    for machine in world.machines:
        machine.clock.set_wrong(0)
        if not machine.alive():
            world.start_worker(machine)
    if not world.machines:
        world.start_worker(world.add_machine())
    if not any(process.alive for process in world.flushers):
        world.start_flusher()
    if world.random.random() < PATIENT:
        world.loop.run_until(world.loop.now_ms + SETTLED_MS)
    _until(world, LATEST_MS, lambda: _settled(world))


def _until(world: World, most_ms: int, done: Callable[[], bool]) -> None:
    """Let time pass until something is so, or long enough that it had to be."""
    end_ms = world.loop.now_ms + most_ms
    while world.loop.now_ms < end_ms:
        world.loop.run_until(world.loop.now_ms + LOOK_MS)
        if done():
            return


def _settled(world: World) -> bool:
    """Whether everything grants and all that was left behind is made good."""
    alive = [worker for worker in world.workers() if worker.process.alive]
    writers = {worker.core.writer for worker in alive}
    if world.network.late_messages_of_the_dead() or any(
        not worker.started or worker.process.paused or not worker.core._store.available for worker in alive
    ):
        return False
    tables = world.postgres.tables
    if any(row["rev"] > row["projected"] for row in tables.tenants.values()):
        return False
    files = [entry.name for machine in world.machines for entry in os.scandir(machine.journals)]
    if any(name.endswith(SUFFIX) and name.removesuffix(SUFFIX) not in writers for name in files):
        return False
    for shard in range(SHARDS):
        about = world.redis.command(b"HMGET", (world.keys.epoch(shard), "gen", "state", "open_at", "skew", "replid"))
        generation, state, open_at, skew, replid = about
        if replid != world.redis.replid.encode():
            return False  # no script has seen this server yet: a new generation is about to begin
        known = tables.shards.get(shard, (0, ""))[1]
        if state != b"open" or world.redis.clock() - int(skew or 0) < int(open_at) or known != generation.decode():
            return False
        if world.redis.command(b"ZCARD", (world.keys.dirty(shard),)):
            return False
        if any(held - writers for held in _holders(world, shard).values()):
            return False
    return not stale_plans(world)


def _holders(world: World, shard: int) -> dict[bytes, set[str]]:
    """Who holds a lease of each limit that lasts for an hour at least."""
    limits = world.redis.hashes(f"{world.keys.tag(shard)}limit:")
    return {
        key: {name[2:].decode() for name in found if name[:2] == b"l:"}
        for key, found in limits.items()
        if b"small" not in found  # what is held of those ends with their period
    }


def check(world: World) -> None:
    """Use up caps, come to rest, stop cleanly; look at everything on the way."""
    check_alive(world)
    check_plans(world)
    check_caps_usable(world)
    world.note("nobody asks any more")
    _until(world, IDLE_MS, lambda: not _holding(world))
    while (more_ms := _freed_in_ms(world)) > 0:
        _until(world, more_ms, lambda: not any(_still_held(world)))
    # A minute that began meanwhile may have brought a lease of its own.
    _until(world, IDLE_MS, lambda: not any(world.oracle.minutes.held(world.wall_s)))
    check_nothing_held(world)
    for about in world.oracle.minutes.held(world.wall_s):
        world.oracle.violated("L2", about)
    check_metric(world)
    ending = [worker for worker in world.workers() if worker.process.alive]
    for worker in ending:
        worker.stop(20)
    _until(world, STOP_MS, lambda: not any(worker.process.alive for worker in world.workers()))
    check_journals_gone(world)
    if not _in_ledger(world):
        _until(world, FLUSHED_MS, lambda: _in_ledger(world))
    check_ledger(world)
    check_lost_leases(world)
    check_redis(world)
    world.oracle.minutes.check_kept({worker.core.writer for worker in ending}, lost_state=world.lost_state > 0)
    check_alive(world)


def _holding(world: World) -> bool:
    """Whether anything is held of a limit whose period goes on."""
    longer = any(any(_holders(world, shard).values()) for shard in range(SHARDS))
    return longer or any(world.oracle.minutes.held(world.wall_s))


def _in_ledger(world: World) -> bool:
    """Whether a flusher has carried everything on and published what it found of old windows.

    A message that was under way for days counts a window again that Redis had forgotten, until then.
    """
    dirty = any(world.redis.command(b"ZCARD", (world.keys.dirty(shard),)) for shard in range(SHARDS))
    return not dirty and all(row["rev"] <= row["projected"] for row in world.postgres.tables.tenants.values())


def check_alive(world: World) -> None:
    for worker in [*world.workers(), *world.gone]:
        if worker.core.fault is not None:
            world.oracle.violated("crash", f"a loop of {worker.process.name} ended: {worker.core.fault!r}")
    for name in sorted(world.postgres.unknown):
        world.oracle.violated("crash", f"the simulated ledger has no query {name}")
    for failure in world.loop.failures:
        world.oracle.violated("crash", f"{failure.get('exception')!r}")
    world.loop.failures.clear()


def check_plans(world: World) -> None:
    """Redis and every worker have the plan that the ledger says."""
    for about in stale_plans(world):
        world.oracle.violated("plans", about)


def stale_plans(world: World) -> list[str]:
    """Who has another plan than the ledger."""
    stale = []
    for tenant in TENANTS:
        row = world.postgres.tables.tenants[tenant]
        wanted = world.ledger_says(tenant)
        document = world.redis.command(b"HGET", (world.keys.tenant(tenant), "doc"))
        found = snapshots.decode(document) if document is not None else None
        if found is None or found.limits != wanted:
            names = [rule.name for rule in found.limits] if found is not None else None
            stale.append(f"Redis has {names} for {tenant}, the ledger wants {row['plan']} (rev {row['rev']})")
            continue
        for worker in world.workers():
            account = worker.core.directory.account(tenant) if worker.process.alive else None
            if account is not None and account.contract.limits != wanted:
                rev = account.rev
                stale.append(f"{worker.process.name} has rev {rev} of {tenant}, not {row['rev']}")
    return stale


def check_nothing_held(world: World) -> None:
    """L2."""
    for key, found, leases in _still_held(world):
        world.oracle.violated("L2", f"{key.decode()} still holds {leases}: {found}")


def _still_held(world: World) -> Iterator[tuple[bytes, dict[bytes, bytes], dict[str, int]]]:
    """Limits of periods that go on, of which something is held, with their leases."""
    for shard in range(SHARDS):
        tag = world.keys.tag(shard)
        generation = world.redis.command(b"HGET", (f"{tag}epoch", "gen"))
        for key, found in world.redis.hashes(f"{tag}limit:").items():
            if found.get(b"g") != generation or b"small" in found or _over(world, key):
                continue
            leases = {name.decode(): int(units) for name, units in found.items() if name.startswith(b"l:")}
            if int(found.get(b"held", b"0")) or int(found.get(b"n", b"0")) or leases:
                yield key, found, leases


def _freed_in_ms(world: World) -> int:
    """How long it may take until the leases of writers that are gone are taken back.

    A message of such a writer that nobody accepted yet, as Redis was away when it came first, is a sign of life when it
    is repeated.
    """
    alive = {worker.core.writer for worker in world.workers() if worker.process.alive}
    heard_ms = [
        world.oracle.heard_ms(world.redis, key.decode().partition("limit:")[0], holder.removeprefix("l:"))
        for key, _, leases in _still_held(world)
        for holder in leases
        if holder.removeprefix("l:") not in alive
    ]
    return max(heard_ms, default=0) + TAKEN_BACK_MS - world.loop.elapsed_ms


DISTURBED = (
    "power lost",
    "hours pass",
    "journal found late",  # days pass: a limit whose period is over for a day is forgotten with its leases
    "plan changed",
    "catalogue changed",
    "wall clock jumps",
    "worker cut off beyond reclaim",
)


def check_metric(world: World) -> None:
    """What Redis says it took back covers what vanished with a disk, unless state was lost as well."""
    oracle = world.oracle
    if world.lost_state or any(fault in world.network.faults for fault in DISTURBED):
        return
    for (writer, key), vanished in oracle.vanished_units.items():
        tenant, limit_id, start = key
        rules = [rule for rule in oracle.snapshots[tenant].limits if rule.name == limit_id.partition(":")[0]]
        # The last message of the writer may have been under way when its disk went, and have told of some of it.
        unreported = (world.oracle.unreported(world.redis, writer, tenant, rule) for rule in rules)
        units = min(vanished, sum(found.get((limit_id, start), 0) for found in unreported))
        if units > oracle.reclaimed_from[writer, key] + oracle.unleased[key]:
            about = f"{writer} vanished with {units} of {key}, {oracle.reclaimed_from[writer, key]} were taken back"
            oracle.violated("metric", about)


def check_lost_leases(world: World) -> None:
    """The ledger has no unit of lost leases that was not taken back, and each that Redis has or did not lose unread."""
    ledger = world.postgres.tables.lost_leases
    tags = {world.keys.tag(shard): shard for shard in range(SHARDS)}
    taken = {(tags[tag], name): units for (tag, name), units in world.oracle.reclaimed_in.items()}
    kept = {
        (shard, name.decode()): int(units)
        for tag, shard in tags.items()
        for found in world.redis.hashes(f"{tag}reclaimed").values()
        for name, units in found.items()
    }
    for key in taken.keys() | ledger.keys():
        units, least = ledger.get(key, 0), (kept if world.lost_state else taken).get(key, 0)
        if not least <= units <= taken.get(key, 0):
            about = f"the ledger has {units} units of shard {key[0]} in {key[1]}: {taken.get(key, 0)} were taken back"
            world.oracle.violated("metric", f"{about}, Redis has {kept.get(key, 0)}")


def _over(world: World, key: bytes) -> bool:
    """Whether the period of a limit is over: nobody can spend from such leases, they expire with their key."""
    tenant, limit_id, start = parts(key)
    name = limit_id.partition(":")[0]
    rule = next((rule for rule in world.oracle.snapshots[tenant].limits if rule.name == name), None)
    period = rule.period if rule is not None else PERIODS[name]  # of a plan that the tenant had before
    now_s = (world.start_ms + world.loop.elapsed_ms + world.redis_wrong_ms) // 1000
    return now_s >= bounds(period, int(start))[1]


def check_journals_gone(world: World) -> None:
    for machine in world.machines:
        for path in machine.journals.glob("*.journal"):
            world.oracle.violated("C1", f"{path.name} on {machine.name} is still there after a clean stop")


def check_ledger(world: World) -> None:
    """C1: writer by writer, what was allowed is in the ledger; only lost disks lower it."""
    oracle, counters = world.oracle, world.postgres.tables.counted()
    seen = set()
    short: dict[tuple[str, str], int] = defaultdict(int)
    for writer, windows in oracle.counted.items():
        for key, units in windows.items():
            metric, _, scope = key.series.partition("@")
            row = (key.tenant, metric, scope, key.period, key.hour, writer)
            seen.add(row)
            found = counters.get(row, 0)
            least = units if writer not in oracle.lost else oracle.lost[writer].get(key, 0)
            if not least <= found <= units:
                oracle.violated("C1", f"the ledger has {found} of {units} ({least} at least) for {key} by {writer}")
            if not scope:
                short[key.tenant, metric] += units - found
    for row in counters.keys() - seen:
        oracle.violated("C1", f"the ledger has {counters[row]} that nobody counted for {row}")
    for (tenant, metric), answered in oracle.answered.items():
        total = sum(units for row, units in counters.items() if row[:3] == (tenant, metric, ""))
        if not answered <= total + short[tenant, metric] <= answered + oracle.unanswered[tenant, metric]:
            oracle.violated("C1", f"{tenant} {metric}: {answered} answered, {total} in the ledger")


def check_redis(world: World) -> None:
    """C3: what limits have used in Redis is what the ledger says."""
    now_s = (world.start_ms + world.loop.elapsed_ms + world.redis_wrong_ms) // 1000
    for tenant in TENANTS:
        snapshot = snapshots.decode(world.redis.command(b"HGET", (world.keys.tenant(tenant), "doc")))
        for rule in snapshot.limits:
            if is_small(rule):
                continue
            sums: dict[tuple[str, int], int] = defaultdict(int)
            for (owner, metric, scope, period, hour, _), units in world.postgres.tables.counted().items():
                fits = scope.startswith(f"{rule.name}:") if rule.scope != "tenant" else not scope
                if owner == tenant and metric == rule.metric and fits:
                    start = period if rule.period == "billing" else bounds(rule.period, hour * 3600)[0]
                    sums[scope or rule.name, start] += units
            for (limit_id, start), units in sums.items():
                if not start <= now_s < bounds(rule.period, start)[1]:
                    continue
                found = world.redis.command(b"HGET", (world.keys.limit(tenant, limit_id, start), "spent"))
                if int(found or 0) != units:
                    world.oracle.violated(
                        "C3", f"Redis has {int(found or 0)} used of {tenant} {limit_id} {start}, the ledger {units}"
                    )
