"""What a chaos run does to its installation, by kind; each returns when it has made good what it broke."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from msgspec import Struct

from sidecar import child
from sidecar.embedded.server import EmbeddedServer
from tests.faults.chaos_place import (
    CONTROL,
    EDGES,
    FLUSHERS,
    LEASE_TTL_MS,
    RECLAIM_AFTER_MS,
    Place,
    unless_gone,
)
from tests.servers.descriptors import descriptors, no_descriptors
from tests.servers.processes import alive, family
from tests.servers.program import Program
from tests.servers.tcp_proxy import TcpProxy

LEASE_TTL_S = LEASE_TTL_MS / 1000
RECLAIM_AFTER_S = RECLAIM_AFTER_MS / 1000
# Redis grants nothing for so long after a loss; before the next one it should.
RECOVERY_S = RECLAIM_AFTER_S + 2
DURABLE_WITHIN_S = 10.0
# A worker that was killed has to be started again first.
STRUCK_WITHIN_S, STRUCK_TRIES = 8.0, 4
METER_EVENTS = "/v1/billing/meter_events"
STRIPE_KINDS = ("rate_limited", "error_before", "error_after", "cut_before", "cut_after", "slow")

Act = Callable[[Place, str, float, Random], Awaitable[None]]


class Kind(Struct, frozen=True):
    """One kind of fault: what it strikes, for how long, and for how long that must be left alone afterwards."""

    act: Act
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.0, 0.0)
    rest_s: float = 1.0
    # What must work meanwhile, besides the target.
    needs: tuple[str, ...] = ()


def _pick(place: Place, target: str, chance: Random) -> int:
    """One process below a program; 0 when it has none at the moment."""
    pids = sorted(place.programs[target].children())
    return chance.choice(pids) if pids else 0


async def kill_process(place: Place, target: str, seconds: float, chance: Random) -> None:
    """A worker, a flusher or the control process; its supervisor replaces it."""
    pid = _pick(place, target, chance)
    if pid:
        unless_gone(lambda: os.kill(pid, signal.SIGKILL))


async def kill_program(place: Place, target: str, seconds: float, chance: Random) -> None:
    """The supervisor; its children die with it, and it is started again."""
    program = place.programs[target]
    if program.running:
        starts = program.starts
        os.kill(program.pid, signal.SIGKILL)
        while program.starts == starts:
            await asyncio.sleep(0.05)
        await program.ready()


async def stop_worker(place: Place, target: str, seconds: float, chance: Random) -> None:
    """Ask one process to end, as a rolling restart does."""
    pid = _pick(place, target, chance)
    if pid:
        unless_gone(lambda: os.kill(pid, signal.SIGTERM))
        await _gone(pid)


async def hang_process(place: Place, target: str, seconds: float, chance: Random) -> None:
    pid = _pick(place, target, chance)
    if not pid:
        return
    unless_gone(lambda: os.kill(pid, signal.SIGSTOP))
    try:
        await asyncio.sleep(seconds)
    finally:
        unless_gone(lambda: os.kill(pid, signal.SIGCONT))


async def redis_restart_kept(place: Place, target: str, seconds: float, chance: Random) -> None:
    await place.redis.restart(keeping=True)


async def redis_restart_lost(place: Place, target: str, seconds: float, chance: Random) -> None:
    await place.redis.restart(keeping=False)


async def redis_flushall(place: Place, target: str, seconds: float, chance: Random) -> None:
    await place.redis.ask("FLUSHALL")


async def redis_failover(place: Place, target: str, seconds: float, chance: Random) -> None:
    proxies = list(place.redis_proxies.values())
    chance.shuffle(proxies)
    await place.redis.fail_over(seconds, proxies, 0.0)


async def redis_split(place: Place, target: str, seconds: float, chance: Random) -> None:
    """A failover that one program notices later than the others."""
    proxies = list(place.redis_proxies.values())
    chance.shuffle(proxies)
    await place.redis.fail_over(0.5, proxies, seconds)


async def redis_hangs(place: Place, target: str, seconds: float, chance: Random) -> None:
    await place.redis.hang(seconds)


async def postgres_killed(place: Place, target: str, seconds: float, chance: Random) -> None:
    os.kill(place.postgres.pid, signal.SIGKILL)
    await asyncio.sleep(seconds)
    await _start(place.postgres)


async def postgres_restart(place: Place, target: str, seconds: float, chance: Random) -> None:
    await place.postgres.stop()
    await asyncio.sleep(seconds)
    await _start(place.postgres)


async def postgres_hangs(place: Place, target: str, seconds: float, chance: Random) -> None:
    pids = family(place.postgres.pid)
    for pid in pids:
        unless_gone(lambda pid=pid: os.kill(pid, signal.SIGSTOP))  # type: ignore[misc]
    try:
        await asyncio.sleep(seconds)
    finally:
        for pid in pids:
            unless_gone(lambda pid=pid: os.kill(pid, signal.SIGCONT))  # type: ignore[misc]


def _proxy(place: Place, target: str) -> TcpProxy:
    what, _, name = target.partition("@")
    if what == "stripe":
        return place.stripe_proxy
    return (place.redis_proxies if what == "redis" else place.postgres_proxies)[name]


async def connections_cut(place: Place, target: str, seconds: float, chance: Random) -> None:
    """Cut them again and again for a while."""
    proxy = _proxy(place, target)
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        proxy.cut()
        await asyncio.sleep(chance.uniform(0.02, 0.4))


async def connections_slow(place: Place, target: str, seconds: float, chance: Random) -> None:
    proxy = _proxy(place, target)
    proxy.slow(chance.randint(5, 60))
    await asyncio.sleep(seconds)
    proxy.resume()


async def packets_dropped(place: Place, target: str, seconds: float, chance: Random) -> None:
    """Nothing comes through; afterwards what was sent arrives late, or never."""
    proxy = _proxy(place, target)
    proxy.hold_up()
    await asyncio.sleep(seconds)
    proxy.resume(late=chance.random() < 0.7)


async def answers_lost(place: Place, target: str, seconds: float, chance: Random) -> None:
    proxy = _proxy(place, target)
    proxy.lose_answers()
    await asyncio.sleep(seconds)
    proxy.resume()


async def disk_full(place: Place, target: str, seconds: float, chance: Random) -> None:
    """A worker that starts on a full disk counts in memory, and in its journal when there is room again.

    Once more where it did not: what the dead one left may have been adopted, and have made room, before it began.
    """
    program = place.programs[target]
    try:
        for _ in range(STRUCK_TRIES):
            program.disk.fill()
            pid = _pick(place, target, chance)
            if pid:
                unless_gone(partial(os.kill, pid, signal.SIGKILL))
            if await _within(STRUCK_WITHIN_S, lambda: _in_memory(program)):
                break
        else:
            place.problems.append(f"the disk of {target} was full, and no worker of it said so")
        await asyncio.sleep(seconds)
    finally:
        program.disk.free()
    if not await _within(DURABLE_WITHIN_S, lambda: _durable(program)):
        place.problems.append(f"{target} had room on its disk for {DURABLE_WITHIN_S} s and counted in memory still")


async def descriptors_exhausted(place: Place, target: str, seconds: float, chance: Random) -> None:
    """A process may open nothing more, and has lost its connections to Redis."""
    pid = _pick(place, target, chance)
    if not pid:
        return
    with contextlib.suppress(OSError), no_descriptors(pid):  # OSError: it was about to end
        before = descriptors(pid)
        place.redis_proxies[target].cut()
        await asyncio.sleep(seconds)
        if opened := descriptors(pid) - before:
            place.problems.append(f"{target} had no descriptors and opened {sorted(opened)}")


async def stripe_fails(place: Place, target: str, seconds: float, chance: Random) -> None:
    """Every kind of failure a call can have, for a share of the calls."""
    rules = [
        {"kind": kind, "path": METER_EVENTS, "share": 0.12, "seed": chance.randrange(10**6), "seconds": 0.5}
        for kind in STRIPE_KINDS
    ]
    await asyncio.to_thread(place.stripe.faults, *rules)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(place.stripe.faults)


async def stripe_away(place: Place, target: str, seconds: float, chance: Random) -> None:
    await asyncio.to_thread(place.stripe.stop)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.to_thread(place.stripe.start)


async def _start(server: EmbeddedServer) -> None:
    """Start a server that may still be ending."""
    process = server._process
    assert process is not None
    await asyncio.to_thread(process.wait)
    await server.start()


async def _durable(program: Program) -> bool:
    """Whether every worker counts in its journal."""
    found = await _journals(program)
    return len(found) >= len(program.children()) and all(found)


async def _in_memory(program: Program) -> bool:
    """Whether a worker says that it cannot count in its journal."""
    return not all(await _journals(program))


async def _journals(program: Program) -> list[bool]:
    """Whether its journal is durable, of each process that answers; none while one does not."""
    sockets = list(program.state.glob("ops-*.sock"))
    try:
        found = [await child.components(socket) for socket in sockets]
    except child.Unanswered:
        return []
    return [one["journal"].ok for one in found if "journal" in one]


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it came true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def _gone(pid: int, within_s: float = 25.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while alive(pid) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)


OFFICE = (*FLUSHERS, CONTROL)
REDIS = ("redis",)
POSTGRES = ("postgres",)
AT_REDIS = tuple(f"redis@{name}" for name in (*EDGES, *FLUSHERS))
AT_POSTGRES = tuple(f"postgres@{name}" for name in FLUSHERS)
LONG = (RECLAIM_AFTER_S + 0.7, RECLAIM_AFTER_S + 2.0)

KINDS: dict[str, Kind] = {
    "worker killed": Kind(kill_process, EDGES),
    "sidecar killed": Kind(kill_program, EDGES),
    "flusher killed": Kind(kill_process, FLUSHERS),
    "control killed": Kind(kill_process, (CONTROL,)),
    "program killed": Kind(kill_program, OFFICE),
    "worker stopped": Kind(stop_worker, EDGES),
    "worker hangs": Kind(hang_process, EDGES, (0.1, LEASE_TTL_S)),
    "worker hangs long": Kind(hang_process, EDGES, LONG),
    "flusher hangs": Kind(hang_process, FLUSHERS, (0.5, 3.0)),
    "flusher hangs long": Kind(hang_process, FLUSHERS, LONG),
    "redis restarted": Kind(redis_restart_kept, REDIS, rest_s=RECOVERY_S),
    "redis restarted empty": Kind(redis_restart_lost, REDIS, rest_s=RECOVERY_S),
    "redis flushed": Kind(redis_flushall, REDIS, rest_s=RECOVERY_S),
    "replica promoted": Kind(redis_failover, REDIS, (0.5, 2.0), rest_s=RECOVERY_S),
    "replica promoted, not for all": Kind(redis_split, REDIS, (0.5, RECLAIM_AFTER_S / 2), rest_s=RECOVERY_S),
    "redis hangs": Kind(redis_hangs, REDIS, (0.2, LEASE_TTL_S * 2), rest_s=2.0),
    "postgres killed": Kind(postgres_killed, POSTGRES, (0.0, 2.0), rest_s=2.0),
    "postgres restarted": Kind(postgres_restart, POSTGRES, (0.0, 2.0), rest_s=2.0),
    "postgres hangs": Kind(postgres_hangs, POSTGRES, (0.5, 4.0), rest_s=2.0),
    "redis connections cut": Kind(connections_cut, AT_REDIS, (0.1, 2.0)),
    "redis connections slow": Kind(connections_slow, AT_REDIS, (0.5, 3.0)),
    "redis packets dropped": Kind(packets_dropped, AT_REDIS, (0.2, LEASE_TTL_S * 1.5)),
    "redis packets dropped long": Kind(packets_dropped, tuple(f"redis@{name}" for name in EDGES), LONG),
    "redis answers lost": Kind(answers_lost, AT_REDIS, (0.2, 2.0)),
    "postgres connections cut": Kind(connections_cut, AT_POSTGRES, (0.1, 2.0)),
    "postgres connections slow": Kind(connections_slow, AT_POSTGRES, (0.5, 3.0)),
    "postgres packets dropped": Kind(packets_dropped, AT_POSTGRES, (0.5, 4.0)),
    "postgres answers lost": Kind(answers_lost, AT_POSTGRES, (0.3, 2.0)),
    "disk full": Kind(disk_full, EDGES, (1.0, 3.0), needs=(*REDIS, *POSTGRES, *AT_REDIS, *AT_POSTGRES, *FLUSHERS)),
    "descriptors exhausted": Kind(descriptors_exhausted, (*EDGES, *FLUSHERS), (0.5, 3.0)),
    "stripe fails": Kind(stripe_fails, ("stripe",), (2.0, 6.0)),
    "stripe away": Kind(stripe_away, ("stripe",), (0.5, 5.0)),
    "stripe connections cut": Kind(connections_cut, ("stripe",), (0.5, 2.0)),
    "stripe answers lost": Kind(answers_lost, ("stripe",), (0.5, 3.0)),
}
