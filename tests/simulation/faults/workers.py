"""What strikes workers and the machines on which they live."""

from __future__ import annotations

from random import Random

from tests.simulation.faults.blows import Blows, Run
from tests.simulation.faults.changes import Changes
from tests.simulation.worker import TERMS, Worker
from tests.simulation.world import TENANTS, Machine

LEAVING = 0.3  # how many workers only an old primary hears, where flushers are on both sides
ASKED_LAST, ASKED_LAST_TIMES, ASKED_LAST_MS = 0.5, 6, 60


class Workers(Blows):
    """Kills, stops, sleeps, cuts, lost disks and power, wrong clocks."""

    def __init__(self, run: Run, changes: Changes) -> None:
        super().__init__(run)
        self._changes = changes

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
        if not alive or self._run.restored:
            return
        machine, worker = draw.choice(alive)
        world.count("journal found late", machine.name)
        world.kill(worker.process)
        world.loop.leap(draw.choice((50, 60)) * 3_600_000)
        self._run.backup = None
        world.network.published_again = True
        for _ in range(3):
            self._later(draw.randrange(200, 4_000), self._changes.change, draw)
        self._later(draw.randrange(500, 4_000), self._replace, machine)

    def leave(self, ms: int, draw: Random) -> None:
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
