"""What strikes flushers."""

from __future__ import annotations

from tests.simulation.faults.blows import Blows


class Flushers(Blows):
    """Kills, sleeps, and one more beside the first."""

    def kill_flusher(self) -> None:
        alive = [process for process in self._world.flushers if process.alive]
        if alive:
            self._world.count("flusher killed")
            self._world.kill(self._random.choice(alive))
            self._later(self._random.choice((1, 1_000, 10_000)), self._flusher)

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
