"""What goes wrong, drawn from the seed: which kinds, how often, and when."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.simulation.faults.blows import Run
from tests.simulation.faults.changes import Changes
from tests.simulation.faults.ends import Endings
from tests.simulation.faults.flushers import Flushers
from tests.simulation.faults.postgres import Postgres
from tests.simulation.faults.redis import Redis
from tests.simulation.faults.steps import Steps
from tests.simulation.faults.workers import Workers
from tests.simulation.world import World


class Faults:
    """Plans the faults of one run."""

    def __init__(self, world: World, random: Random, length_ms: int) -> None:
        self._run = run = Run(world, random, length_ms)
        self._changes = Changes(run)
        self._postgres = Postgres(run)
        self._flushers = Flushers(run)
        self._workers = Workers(run, self._changes)
        self._redis = Redis(run, self._workers, self._postgres, self._changes)
        self._chosen: list[Callable[[], None]] = []

    def plan(self) -> None:
        """Choose a weather for the whole run and a handful of blows."""
        run, workers, flushers = self._run, self._workers, self._flushers
        redis, postgres, changes = self._redis, self._postgres, self._changes
        random, world = run.random, run.world
        network = world.network
        weather = random.random()
        if weather < 0.7:
            network.lost_rate = random.choice((0, 5, 30, 100))
            network.reply_lost_rate = random.choice((0, 5, 30, 100))
            network.late_rate = random.choice((0, 5, 30, 100))
            network.repeated_rate = random.choice((0, 5, 50))
        blows: list[Callable[[], None]] = [
            workers.kill_worker,
            workers.kill_worker,
            workers.kill_at_effect,
            flushers.kill_flusher,
            workers.stop_worker,
            workers.pause,
            flushers.pause_flusher,
            workers.cut,
            workers.lose_disk,
            workers.fail_power,
            redis.wipe,
            redis.fail_over,
            redis.restart,
            redis.outage,
            postgres.outage,
            postgres.restore,
            redis.jump,
            workers.wall_clock,
            changes.change_plan,
            changes.change_plan,
            changes.change_catalogue,
            changes.change_unheard,
            changes.leap,
            flushers.second_flusher,
            redis.wipe_after_adoption,
        ]
        self._chosen = chosen = random.sample(blows, random.randrange(2, 9))
        for _ in range(random.randrange(2, 10)):
            world.plan(random.randrange(run.length_ms), random.choice(chosen))
        for chance, blow in ((0.15, workers.trap), (0.08, workers.find_late), (0.08, redis.split_flushers)):
            if run.besides.random() < chance:
                world.plan(run.besides.randrange(run.length_ms), blow)
        for _ in range(run.besides.choice((0, 0, 1, 4))):
            world.loop.at(run.besides.randrange(1_500, run.length_ms), world.crowd, run.besides)
        if world.minutes:
            Steps(world, world.besides, run.length_ms).plan()
        if world.has_ends:
            Endings(run, world.endings).plan()
        for at in range(0, run.length_ms, 2_000):
            world.plan(at + random.randrange(2_000), self._remember)

    def _remember(self) -> None:
        """What a backup, a replica and the disks have of this moment, as far as this run will ask for it."""
        run = self._run
        random, world = run.random, run.world
        if self._postgres.restore in self._chosen:
            run.backup = world.postgres.backup() or run.backup
        if self._redis.fail_over in self._chosen:
            run.copies = [*run.copies[-3:], world.redis.copy_data()]
        for machine in world.machines:
            if random.random() < 0.7 and self._workers.fail_power in self._chosen:
                machine.remember()
