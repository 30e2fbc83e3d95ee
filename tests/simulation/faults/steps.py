"""What is hard for limits of seconds and minutes: clocks that step, plans that change, bursts of requests."""

from __future__ import annotations

from random import Random

from tests.simulation.faults.changes import change_plan
from tests.simulation.world import TENANTS, World

# Around the periods' lengths, and more and less than what a lease is asked for ahead.
STEPS_MS = -61_000, -60_000, -59_000, -5_000, -2_000, -1_000, -300, 300, 1_000, 2_000, 5_000, 58_000, 60_000, 61_000
STEPS_MOST = 8
STEP_BACK_MS = 300, 1_000, 2_500, 6_000, 12_000
SILENT, SILENT_BEFORE_MS, SILENT_AFTER_MS = 0.5, (500, 4_500), (100, 7_000)
MINUTE_MS = 60_000
CHANGES = 0, 0, 1, 3
BURST, BURST_MS = 30, 1_500


class Steps:
    """Plans them for one run, from a stream of its own."""

    def __init__(self, world: World, random: Random, length_ms: int) -> None:
        self._world = world
        self._random = random
        self._length_ms = length_ms

    def plan(self) -> None:
        world, random = self._world, self._random
        for _ in range(random.randrange(STEPS_MOST)):
            world.plan(random.randrange(self._length_ms), self.step)
        for _ in range(random.choice(CHANGES)):
            world.plan(random.randrange(self._length_ms), self.change)
        for _ in range(random.choice(CHANGES)):
            world.plan(random.randrange(self._length_ms), self.burst)

        if random.random() < SILENT:  # leases rest while the minute ends
            ends_ms = -world.start_ms % MINUTE_MS
            begin_ms = ends_ms - random.randrange(*SILENT_BEFORE_MS)
            world.silence_ms = range(begin_ms, ends_ms + random.randrange(*SILENT_AFTER_MS))

    def step(self) -> None:
        """The wall clock of a machine steps, and for good or until a while later."""
        world, random = self._world, self._random
        if not world.machines:
            return
        machine, ms = random.choice(world.machines), random.choice(STEPS_MS)
        world.count("wall clock steps", f"{machine.name} by {ms} ms")
        machine.clock.set_wrong(machine.clock.wrong_ms + ms)
        if random.random() < 0.5:
            world.plan(world.loop.now_ms + random.choice(STEP_BACK_MS), self._step_back, machine.name, ms)

    def _step_back(self, name: str, ms: int) -> None:
        for machine in self._world.machines:
            if machine.name == name:
                self._world.note(f"the wall clock of {name} steps back")
                machine.clock.set_wrong(machine.clock.wrong_ms - ms)

    def change(self) -> None:
        """A tenant loses such a limit, gets one, or another one under its name."""
        change_plan(self._world, self._random)

    def burst(self) -> None:
        """One tenant asks all workers at once, as at the begin of a minute."""
        world, random = self._world, self._random
        tenant, user = random.choice(TENANTS), random.choice(("u1", "u2"))
        for _ in range(BURST):
            ms = world.loop.now_ms + random.randrange(BURST_MS)
            workers = [one for machine in world.machines for one in machine.alive()]
            if workers:
                world.loop.at(ms, world.send, random.choice(workers), tenant, world.routes[-1], user)
