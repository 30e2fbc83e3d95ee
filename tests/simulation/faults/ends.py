"""Workers that are killed between counting and answering, or between two things that they do to files."""

from __future__ import annotations

from random import Random

from tests.simulation.ends import ANSWERS, FILES
from tests.simulation.faults.blows import Blows, Run
from tests.simulation.world import Machine

BLOWS_MOST = 6
EFFECTS_MOST = {ANSWERS: 12, FILES: 6}
REPLACED_MS = 1, 500, 3_000, 20_000
STOPPED_MS = 16_000


class Endings(Blows):
    """Plans them for one run, from a stream of its own."""

    def __init__(self, run: Run, draw: Random) -> None:
        super().__init__(run)
        self._draw = draw

    def plan(self) -> None:
        draw, world = self._draw, self._world
        for _ in range(draw.randrange(1, BLOWS_MOST)):
            blow = draw.choice((self.unanswered, self.counting, self.closing, self.adopting, self.adopting))
            world.plan(draw.randrange(self._run.length_ms), blow)

    def unanswered(self) -> None:
        """Killed after it has counted a request, before the answer."""
        self._arm(ANSWERS)

    def counting(self) -> None:
        """Killed while its journal gets a record or grows."""
        self._arm(FILES)

    def closing(self) -> None:
        """Killed while it stops and closes its journal, or deletes it."""
        machine, draw = self._drawn(), self._draw
        started = [one for one in machine.alive() if one.started and not one.process.paused] if machine else []
        if machine and started:
            worker = draw.choice(started)
            self._world.ends.arm(worker.process, FILES, draw.randrange(EFFECTS_MOST[FILES]))
            worker.stop(15)
            self._later(STOPPED_MS, self._replace, machine)

    def adopting(self) -> None:
        """Killed while it deletes the journal of one that died before, or leaves it to others."""
        machine, draw = self._drawn(), self._draw
        if machine and machine.alive():
            self._world.kill(draw.choice(machine.alive()).process)
            successor = self._world.start_worker(machine)
            self._world.ends.arm(successor.process, FILES, draw.randrange(EFFECTS_MOST[FILES]))
            self._later(draw.choice(REPLACED_MS), self._replace, machine)

    def _arm(self, kind: str) -> None:
        machine, draw = self._drawn(), self._draw
        if machine and machine.alive():
            self._world.ends.arm(draw.choice(machine.alive()).process, kind, draw.randrange(EFFECTS_MOST[kind]))
            self._later(draw.choice(REPLACED_MS), self._replace, machine)

    def _drawn(self) -> Machine | None:
        return self._draw.choice(self._world.machines) if self._world.machines else None
