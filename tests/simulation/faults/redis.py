"""What strikes Redis."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.faults.blows import Blows, Run
from tests.simulation.faults.changes import Changes
from tests.simulation.faults.postgres import Postgres
from tests.simulation.faults.workers import Workers
from tests.simulation.worker import TERMS

SPLIT_MS_MAX = TERMS.reclaim_after_ms - TERMS.lease_ttl_ms - 1_000
JUMP_UNSEEN_MS = 10_000  # as far as a server's clock may step unnoticed: silence is cut short by it


class Redis(Blows):
    """Wipes, failovers with and without split brain, restarts, outages, a clock that jumps."""

    def __init__(self, run: Run, workers: Workers, postgres: Postgres, changes: Changes) -> None:
        super().__init__(run)
        self._workers = workers
        self._postgres = postgres
        self._changes = changes

    def wipe(self) -> None:
        if self._run.resending:
            return
        self._world.count("redis wiped")
        self._world.lost_state += 1
        self._world.redis.wipe()

    def fail_over(self) -> None:
        """An older copy takes over; the old primary may go on serving some for a while."""
        world, random = self._world, self._random
        if self._run.resending:
            return
        old = world.redis
        copies = [*self._run.copies, old.copy_data()]
        split = random.random() < 0.5
        world.count("failover with split brain" if split else "failover")
        world.promote(random.choice(copies))
        if split:
            processes = [worker.process for worker in world.workers()] + world.flushers
            world.network.old = old
            world.network.old_side = {process for process in processes if random.random() < 0.5}
            self._later(random.randrange(500, SPLIT_MS_MAX), self._end_split, old)

    def split_flushers(self) -> None:
        """A flusher goes on with the old primary, another one has the new one, and plans change."""
        world, draw = self._world, self._besides
        if self._run.resending or world.network.old is not None:
            return
        world.count("failover, flushers on both sides")
        old = world.redis
        world.promote(old.copy_data())
        world.network.old = old
        world.network.old_side = set(world.flushers)
        world.start_flusher()
        ms = draw.randrange(2_500, SPLIT_MS_MAX)
        for _ in range(3):
            self._later(draw.randrange(ms), self._changes.change, draw)
        self._later(ms, self._end_split, old)
        self._workers.leave(ms, Random(f"{world.seed} leave"))

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
            self._later(6_000, self._postgres.come_up)

    def restart(self) -> None:
        """The same data, served by a new process after a moment."""
        self._world.count("redis restarted")
        data = self._world.redis.copy_data()
        self._world.promote(data).up = False
        self._later(self._random.choice((50, 2_000)), self._up, self._world.redis)

    def outage(self) -> None:
        self._world.count("redis outage")
        self._world.redis.up = False
        self._later(self._random.choice((100, 1_500, 5_000, 20_000)), self._up, self._world.redis)

    def _up(self, server: Any) -> None:
        server.up = True

    def jump(self) -> None:
        jump_ms = self._random.choice((-3_600_000, -30_000, -900, 5_000, 11_000, 60_000, 3_600_000))
        self._world.count("redis clock jumps", f"by {jump_ms} ms")
        world = self._world
        world.redis_wrong_ms += jump_ms
        world.redis_wrong_most_ms = max(world.redis_wrong_most_ms, world.redis_wrong_ms)
        if 0 < jump_ms <= JUMP_UNSEEN_MS:
            self._world.oracle.silent_after_ms -= jump_ms
