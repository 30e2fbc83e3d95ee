"""What goes wrong, drawn from the seed: which kinds, how often, and when."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.catalogues import PLANS
from tests.simulation.postgres import Tables
from tests.simulation.steps import Steps
from tests.simulation.worker import SHARDS, TERMS, Worker
from tests.simulation.world import TENANTS, Machine, World

SPLIT_MS_MAX = TERMS.reclaim_after_ms - TERMS.lease_ttl_ms - 1_000
JUMP_UNSEEN_MS = 10_000  # as far as a server's clock may step unnoticed: silence is cut short by it
LEAVING = 0.3  # how many workers only an old primary hears, where flushers are on both sides
ASKED_LAST, ASKED_LAST_TIMES, ASKED_LAST_MS = 0.5, 6, 60
HOURS_LEAPT = (1, 2, 5, 23, 30, 46, 48, 60, 24 * 41)


class Faults:
    """Plans the faults of one run; every one also arranges for its own end."""

    def __init__(self, world: World, random: Random, length_ms: int) -> None:
        self._world = world
        self._random = random
        self._length_ms = length_ms
        self._backup: Any = None
        self._restored = False
        self._copies: list[Any] = []
        self._chosen: list[Callable[[], None]] = []
        self._besides = Random(f"{world.seed} besides")  # what was added later, so that older seeds stay what they were

    def plan(self) -> None:
        """Choose a weather for the whole run and a handful of blows."""
        random, world = self._random, self._world
        network = world.network
        weather = random.random()
        if weather < 0.7:
            network.lost_rate = random.choice((0, 5, 30, 100))
            network.reply_lost_rate = random.choice((0, 5, 30, 100))
            network.late_rate = random.choice((0, 5, 30, 100))
            network.repeated_rate = random.choice((0, 5, 50))
        blows: list[Callable[[], None]] = [
            self.kill_worker,
            self.kill_worker,
            self.kill_at_effect,
            self.kill_flusher,
            self.stop_worker,
            self.pause,
            self.pause_flusher,
            self.cut,
            self.lose_disk,
            self.fail_power,
            self.wipe,
            self.fail_over,
            self.restart_redis,
            self.redis_outage,
            self.postgres_outage,
            self.postgres_restored,
            self.redis_clock,
            self.wall_clock,
            self.change_plan,
            self.change_plan,
            self.change_catalogue,
            self.change_unheard,
            self.leap,
            self.second_flusher,
            self.wipe_after_adoption,
        ]
        self._chosen = chosen = random.sample(blows, random.randrange(2, 9))
        for _ in range(random.randrange(2, 10)):
            world.plan(random.randrange(self._length_ms), random.choice(chosen))
        for chance, blow in ((0.15, self.trap), (0.08, self.find_late), (0.08, self.split_flushers)):
            if self._besides.random() < chance:
                world.plan(self._besides.randrange(self._length_ms), blow)
        for _ in range(self._besides.choice((0, 0, 1, 4))):
            world.loop.at(self._besides.randrange(1_500, self._length_ms), world.crowd, self._besides)
        if world.minutes:
            Steps(world, world.besides, self._length_ms).plan()
        for at in range(0, self._length_ms, 2_000):
            world.plan(at + random.randrange(2_000), self._remember)

    def _remember(self) -> None:
        """What a backup, a replica and the disks have of this moment, as far as this run will ask for it."""
        random, world = self._random, self._world
        if self.postgres_restored in self._chosen:
            self._backup = world.postgres.backup() or self._backup
        if self.fail_over in self._chosen:
            self._copies = [*self._copies[-3:], world.redis.copy_data()]
        for machine in world.machines:
            if random.random() < 0.7 and self.fail_power in self._chosen:
                machine.remember()

    def _later(self, ms: int, call: Callable[..., None], *arguments: Any) -> None:
        self._world.plan(self._world.loop.now_ms + ms, call, *arguments)

    def _machine(self) -> Machine | None:
        return self._random.choice(self._world.machines) if self._world.machines else None

    def _replace(self, machine: Machine) -> None:
        if machine in self._world.machines and not machine.alive():
            self._world.start_worker(machine)

    # Workers.

    def kill_worker(self) -> None:
        machine = self._machine()
        alive = machine.alive() if machine else []
        if machine and alive:
            torn = self._random.random() < 0.5
            self._world.count("worker killed, torn journal" if torn else "worker killed")
            self._world.kill(self._random.choice(alive).process, torn=torn)
            self._later(self._random.choice((1, 500, 3_000, 20_000)), self._replace, machine)

    def kill_at_effect(self) -> None:
        """Kill something just before or after one of its next effects."""
        world = self._world
        machine = self._machine()
        alive = machine.alive() if machine else []
        flushers = [process for process in world.flushers if process.alive]
        if alive and machine and (self._random.random() < 0.6 or not flushers):
            world.count("worker killed at an effect")
            world.network.fuses[self._random.choice(alive).process] = self._random.randrange(12)
            self._later(self._random.choice((2_000, 8_000)), self._replace, machine)
        elif flushers:
            world.count("flusher killed at an effect")
            world.network.fuses[self._random.choice(flushers)] = self._random.randrange(60)
            self._later(self._random.choice((1_000, 8_000)), self._flusher)

    def stop_worker(self) -> None:
        machine = self._machine()
        alive = machine.alive() if machine else []
        started = [worker for worker in alive if worker.started and not worker.process.paused]
        if machine and started:
            self._world.count("clean stop")
            worker = self._random.choice(started)
            worker.stop(self._random.choice((1, 4, 15)))
            self._ask_last(worker)
            self._later(self._random.choice((1, 500, 3_000)), self._replace, machine)

    def _ask_last(self, worker: Worker) -> None:
        """Some still ask while a worker stops, and what they wait for comes when its leases are about to be freed."""
        draw = Random(f"{self._world.seed} {worker.process.name} is asked last")
        if draw.random() < ASKED_LAST:
            tenants = draw.sample(TENANTS, 3)
            for _ in range(ASKED_LAST_TIMES):
                route = draw.choice(self._world.routes)
                ms = self._world.loop.now_ms + draw.randrange(ASKED_LAST_MS)
                self._world.loop.at(ms, self._world.send, worker, draw.choice(tenants), route, "u1")

    def pause(self) -> None:
        machine = self._machine()
        alive = machine.alive() if machine else []
        if alive:
            process = self._random.choice(alive).process
            ms = self._random.choice((200, 3_000, TERMS.reclaim_after_ms - 100, TERMS.reclaim_after_ms + 3_000, 25_000))
            self._world.count("pause beyond reclaim" if ms > TERMS.reclaim_after_ms else "pause", process.name)
            if self._random.random() < 0.5:
                self._world.network.stalls[process] = ms
                return
            process.paused = True
            self._later(ms, self._world.loop.resume, process)

    def find_late(self) -> None:
        """A journal is found days later, while plans change and what is published of them is late."""
        world, draw = self._world, self._besides
        alive = [(machine, worker) for machine in world.machines for worker in machine.alive()]
        if not alive or self._restored:
            return
        machine, worker = draw.choice(alive)
        world.count("journal found late", machine.name)
        world.kill(worker.process)
        world.loop.leap(draw.choice((50, 60)) * 3_600_000)
        self._backup = None
        world.network.published_again = True
        for _ in range(3):
            self._later(draw.randrange(200, 4_000), self._change, draw)
        self._later(draw.randrange(500, 4_000), self._replace, machine)

    def _change(self, draw: Random) -> None:
        if self._world.postgres.up:
            self._world.postgres.put_tenant(draw.choice(TENANTS), plan=draw.choice(PLANS))

    def split_flushers(self) -> None:
        """A flusher goes on with the old primary, another one has the new one, and plans change."""
        world, draw = self._world, self._besides
        if self._resending() or world.network.old is not None:
            return
        world.count("failover, flushers on both sides")
        old = world.redis
        world.promote(old.copy_data())
        world.network.old = old
        world.network.old_side = set(world.flushers)
        world.start_flusher()
        ms = draw.randrange(2_500, SPLIT_MS_MAX)
        for _ in range(3):
            self._later(draw.randrange(ms), self._change, draw)
        self._later(ms, self._end_split, old)
        self._leave(ms, Random(f"{world.seed} leave"))

    def _leave(self, ms: int, draw: Random) -> None:
        """Workers that only the old primary hears stop, and nobody is left to tell the new one what they counted."""
        world = self._world
        for machine in world.machines:
            for worker in machine.alive():
                if draw.random() < LEAVING:
                    world.network.old_side.add(worker.process)
                    self._later(draw.randrange(ms), self._stop, machine, worker, draw)

    def _stop(self, machine: Machine, worker: Worker, draw: Random) -> None:
        if worker.started and worker.process.alive and not (worker.stopping or worker.process.paused):
            self._world.count("clean stop", worker.process.name)
            worker.stop(15)
            self._ask_last(worker)
            self._later(draw.choice((1, 3_000)), self._replace, machine)

    def trap(self) -> None:
        """One worker sleeps between an answer that brings it a lease and its use, until others have what it held."""
        alive = [worker for machine in self._world.machines for worker in machine.alive()]
        if len(alive) > 1:
            process = self._besides.choice(alive).process
            self._world.count("pause on a lease", process.name)
            self._world.network.traps[process] = TERMS.reclaim_after_ms + self._besides.choice((3_000, 6_000))

    def cut(self) -> None:
        """One worker does not reach Redis for a while."""
        machine = self._machine()
        alive = machine.alive() if machine else []
        if alive:
            process = self._random.choice(alive).process
            ms = self._random.choice((1_000, 4_000, TERMS.reclaim_after_ms + 2_000, 25_000))
            self._world.count(
                "worker cut off beyond reclaim" if ms > TERMS.reclaim_after_ms else "worker cut off", process.name
            )
            self._world.network.cut.add(process)
            self._later(ms, self._world.network.cut.discard, process)

    def lose_disk(self) -> None:
        machine = self._machine()
        if machine:
            self._world.count("disk lost", machine.name)
            self._world.lose_disk(machine)
            self._later(self._random.choice((100, 5_000)), self._new_machine)

    def _new_machine(self) -> None:
        self._world.start_worker(self._world.add_machine())

    def fail_power(self) -> None:
        machine = self._machine()
        if machine:
            self._world.count("power lost", machine.name)
            self._world.fail_power(machine)
            self._later(self._random.choice((100, 5_000, 20_000)), self._replace, machine)

    def wall_clock(self) -> None:
        machine = self._machine()
        if machine:
            wrong_ms = self._random.choice((-90_000, -5_000, 4_000, 60_000, -3_700_000, 3_700_000, 86_400_000))
            self._world.count("wall clock jumps", f"{machine.name} by {wrong_ms} ms")
            machine.clock.set_wrong(machine.clock.wrong_ms + wrong_ms)
            self._later(self._random.choice((3_000, 15_000)), self._right, machine)

    def _right(self, machine: Machine) -> None:
        machine.clock.set_wrong(0)

    # Flushers.

    def kill_flusher(self) -> None:
        alive = [process for process in self._world.flushers if process.alive]
        if alive:
            self._world.count("flusher killed")
            self._world.kill(self._random.choice(alive))
            self._later(self._random.choice((1, 1_000, 10_000)), self._flusher)

    def _flusher(self) -> None:
        if not any(process.alive for process in self._world.flushers):
            self._world.start_flusher()

    def second_flusher(self) -> None:
        self._world.count("second flusher")
        self._world.start_flusher()

    def pause_flusher(self) -> None:
        alive = [process for process in self._world.flushers if process.alive]
        if alive:
            process = self._random.choice(alive)
            self._world.count("flusher paused", process.name)
            process.paused = True
            self._later(self._random.choice((500, 5_000, 20_000)), self._world.loop.resume, process)

    # Redis.

    def _resending(self) -> bool:
        """Whether a restored ledger lacks what only Redis has: a loss of both is no promise of ours."""
        if not self._restored:
            return False
        world = self._world
        known = [world.postgres.tables.shards.get(shard, [0])[0] for shard in range(SHARDS)]
        epochs = [int(world.redis.command(b"HGET", (world.keys.epoch(shard), "epoch")) or 0) for shard in range(SHARDS)]
        dirty = any(world.redis.command(b"ZCARD", (world.keys.dirty(shard),)) for shard in range(SHARDS))
        return dirty or not world.postgres.up or any(epoch > one for epoch, one in zip(epochs, known, strict=True))

    def wipe(self) -> None:
        if self._resending():
            return
        self._world.count("redis wiped")
        self._world.lost_state += 1
        self._world.redis.wipe()

    def fail_over(self) -> None:
        """An older copy takes over; the old primary may go on serving some for a while."""
        world, random = self._world, self._random
        if self._resending():
            return
        old = world.redis
        copies = [*self._copies, old.copy_data()]
        split = random.random() < 0.5
        world.count("failover with split brain" if split else "failover")
        world.promote(random.choice(copies))
        if split:
            processes = [worker.process for worker in world.workers()] + world.flushers
            world.network.old = old
            world.network.old_side = {process for process in processes if random.random() < 0.5}
            self._later(random.randrange(500, SPLIT_MS_MAX), self._end_split, old)

    def _end_split(self, old: Any) -> None:
        if self._world.network.old is old:
            self._world.network.old = None
            self._world.network.old_side.clear()

    def wipe_after_adoption(self) -> None:
        """A journal is adopted while Postgres is away, and then Redis loses what it heard."""
        machine = self._machine()
        if machine and machine.alive() and self._world.postgres.up:
            self._world.count("redis wiped after an adoption")
            self._world.postgres.stop()
            self._world.kill(machine.alive()[0].process)
            self._replace(machine)
            self._later(self._random.choice((800, 3_000, 5_000)), self.wipe)
            self._later(6_000, self._postgres_up)

    def restart_redis(self) -> None:
        """The same data, served by a new process after a moment."""
        self._world.count("redis restarted")
        data = self._world.redis.copy_data()
        self._world.promote(data).up = False
        self._later(self._random.choice((50, 2_000)), self._up, self._world.redis)

    def redis_outage(self) -> None:
        self._world.count("redis outage")
        self._world.redis.up = False
        self._later(self._random.choice((100, 1_500, 5_000, 20_000)), self._up, self._world.redis)

    def _up(self, server: Any) -> None:
        server.up = True

    def redis_clock(self) -> None:
        jump_ms = self._random.choice((-3_600_000, -30_000, -900, 5_000, 11_000, 60_000, 3_600_000))
        self._world.count("redis clock jumps", f"by {jump_ms} ms")
        world = self._world
        world.redis_wrong_ms += jump_ms
        world.redis_wrong_most_ms = max(world.redis_wrong_most_ms, world.redis_wrong_ms)
        if 0 < jump_ms <= JUMP_UNSEEN_MS:
            self._world.oracle.silent_after_ms -= jump_ms

    # Postgres.

    def postgres_outage(self) -> None:
        self._world.count("postgres outage")
        self._world.postgres.stop()
        self._later(self._random.choice((300, 5_000, 20_000)), self._postgres_up)

    def _older(self, backup: Tables) -> bool:
        redis, keys = self._world.redis, self._world.keys
        epochs = [int(redis.command(b"HGET", (keys.epoch(shard), "epoch")) or 0) for shard in range(SHARDS)]
        return any(epoch > backup.shards.get(shard, [0])[0] for shard, epoch in enumerate(epochs))

    def _postgres_up(self) -> None:
        self._world.postgres.up = True

    def postgres_restored(self) -> None:
        """Postgres comes back as it was a while ago; what Redis and the journals have goes there again."""
        # It is by a shard's epoch that a flusher sees it: a backup from after the last count looks like no backup.
        if self._backup is None or self._world.lost_state or not self._older(self._backup):
            return
        self._world.count("postgres restored")
        self._restored = True
        self._world.postgres.stop()
        self._world.restore_postgres(self._backup)
        self._later(self._random.choice((100, 3_000)), self._postgres_up)

    # Plans and time.

    def change_plan(self) -> None:
        if self._world.postgres.up:
            tenant, plan = self._random.choice(TENANTS), self._random.choice(PLANS)
            self._world.count("plan changed", f"{tenant} to {plan}")
            self._world.postgres.put_tenant(tenant, plan=plan)

    def change_catalogue(self) -> None:
        if self._world.postgres.up:
            number = self._random.randrange(len(self._world.texts))
            self._world.count("catalogue changed", f"to {number}")
            self._world.postgres.apply_catalogue(self._world.texts[number])

    def change_unheard(self) -> None:
        """Workers do not hear what is announced; a plan changes, and changes again."""
        self._world.count("changes unheard")
        for worker in self._world.workers():
            if self._random.random() < 0.7:
                self._world.network.deaf.add(worker.process)
        self.change_plan()
        self._later(self._random.randrange(2_000, 6_000), self.change_plan)
        self._later(14_000, self._world.network.deaf.clear)

    def leap(self) -> None:
        """All machines sleep for hours and wake together."""
        if self._restored:
            return  # Redis keeps what is in the ledger for two days only, and must have it still
        hours = self._random.choice(HOURS_LEAPT)
        self._world.count("hours pass", str(hours))
        self._world.loop.leap(hours * 3_600_000)
        self._backup = None
