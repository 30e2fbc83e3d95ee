"""L3: whether caps can be used to the last unit when everything has healed."""

from __future__ import annotations

from sidecar.catalogue.period import bounds
from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.decision import Decision
from sidecar.enforcement.kept import HOURS_KEPT
from sidecar.enforcement.limit_state import IDLE_AFTER_MS
from sidecar.enforcement.synchroniser import HOUR_MS, RESTING_POLL_MS
from tests.simulation.minutes import is_small
from tests.simulation.worker import STORE_TIMEOUT_MS, SYNC_INTERVAL_MS, TERMS, Worker
from tests.simulation.world import TENANTS, World

HELD_ONCE_MORE_MS = TERMS.reclaim_after_ms + 500
TRIES_MAX = 120
# One report tells of the last use, one just before IDLE_AFTER_MS is over keeps the rest, and the next gives it back. Of
# what is at rest one message tells that it is called for, and the next gives it back.
TOLD_MS = 2 * (SYNC_INTERVAL_MS + STORE_TIMEOUT_MS)
UNUSED_MS = IDLE_AFTER_MS + RESTING_POLL_MS + TOLD_MS
USED_UP_S = 10


def check_caps_usable(world: World) -> None:
    """L3: one worker can use each tenant's tightest cap to its last unit, and no more (L1)."""
    workers = [worker for machine in world.machines for worker in machine.alive()]
    worker = workers[world.random.randrange(len(workers))]
    route = world.routes[-1]
    tenant = world.random.choice(TENANTS)
    world.note(f"{worker.process.name} uses up {tenant}")
    denied = _use_up(world, worker, tenant, route)
    if denied is not None and denied.reason == "store_unavailable":
        # What was under way for longer than Redis keeps a writer's record made it hold its grants once more.
        world.loop.run_until(world.loop.now_ms + HELD_ONCE_MORE_MS)
        denied = _use_up(world, worker, tenant, route)
    account = worker.core.directory.account(tenant)
    if account is None or denied is None:
        if denied is None:
            return  # the cap is beyond what one run uses
        world.oracle.violated("L3", f"{worker.process.name} does not know {tenant}: {denied}")
        return
    # It may not count in hours that it has closed when its clock, and Redis', were ahead, as far as both were.
    redis_hour = (world.start_ms + world.loop.elapsed_ms + world.redis_wrong_most_ms) // HOUR_MS
    closed_s = min(worker.core.synchroniser.floor_ms // 1000, (redis_hour - HOURS_KEPT) * 3600)
    now_s = max(worker.clock.wall_s(), closed_s)
    full = False
    for owner in (account, account.parent):
        for rule in owner.contract.limits if owner is not None else ():
            if owner is None or rule.metric != "calls" or rule.stop is None:
                continue
            limit_id = rule.name if rule.scope == "tenant" else f"{rule.name}:u1"
            for at_s in (now_s, now_s - 1, now_s - USED_UP_S):  # a period may have ended meanwhile
                start, end = bounds(rule.period, at_s)
                if is_small(rule):
                    key = owner.tenant, limit_id, start
                    full = full or world.oracle.minutes.used_up(key, rule.stop, end * 1000)
                    continue
                if end <= _first_direct_s(world, owner.tenant):
                    full = True  # over by Redis' clock when its state was lost: it cannot know what was used
                total = world.oracle.total(owner.tenant, rule, limit_id, start)
                lost = _lost(world, owner.tenant, rule, limit_id, start)
                full = full or total - lost >= rule.stop
    if not full:
        world.oracle.violated("L3", f"{worker.process.name} cannot use {tenant} to the last unit: {denied}")


def _use_up(world: World, worker: Worker, tenant: str, route: object) -> Decision | None:
    """Ask until nothing is allowed even after every lease that others do not use came back; the last denial."""
    allowed_ms = held_ms = world.loop.now_ms
    for _ in range(TRIES_MAX):
        heard: list[Decision] = []
        asked_ms = world.loop.now_ms
        if _others_hold(world, worker, tenant):
            held_ms = asked_ms
        for _ in range(5):
            world.loop.at(asked_ms, world.send, worker, tenant, route, "u1", heard)
        world.loop.run_until(asked_ms + 60)
        if any(decision.allow for decision in heard):
            allowed_ms = world.loop.now_ms
            continue
        limit = heard[-1].limit if heard and heard[-1].reason == "limit_reached" else None
        if limit is not None and limit.window_s == 1:
            return heard[-1]  # there is more in a moment
        world.loop.run_until(world.loop.now_ms + 400)
        if asked_ms - allowed_ms > UNUSED_MS or asked_ms - max(allowed_ms, held_ms) > TOLD_MS:
            return heard[-1] if heard else None
    return None


def _others_hold(world: World, worker: Worker, tenant: str) -> bool:
    """Whether Redis has leases of this tenant, or of whom it belongs to, that are not this worker's."""
    account = worker.core.directory.account(tenant)
    if account is None:
        return True
    own = f"l:{worker.core.writer}".encode()
    for owner in (account, account.parent):
        if owner is not None:
            key = f"{world.keys.tag(world.keys.shard_of(owner.tenant))}limit:{owner.tenant}:"
            for found in world.redis.hashes(key).values():
                if any(name[:2] == b"l:" and name != own for name in found):
                    return True
    return False


def _first_direct_s(world: World, tenant: str) -> int:
    """When the first hour began whose windows move what Redis has of this tenant's limits."""
    epoch = world.keys.epoch(world.keys.shard_of(tenant))
    return int(world.redis.command(b"HGET", (epoch, "direct"))) * 3600


def _lost(world: World, tenant: str, rule: LimitRule, limit_id: str, start: int) -> int:
    """Units allowed by writers whose disk went, which nobody knows of any more."""
    lost = 0
    for writer in world.oracle.lost:
        lost += world.oracle.unreported(world.redis, writer, tenant, rule).get((limit_id, start), 0)
    return lost
