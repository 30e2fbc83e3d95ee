"""Ends of a worker between two effects that are no messages: what it counts, answers, and does to files.

Guarantees: a worker whose fuse burns down is killed there and then, and takes no further step; no stream is drawn from.
Gives up:   the making of a new journal, which nobody finds before it is whole, and which holds nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from sidecar.usage.journal import Journal
from sidecar.usage.recovery import DeadJournal
from tests.simulation.scheduler import Killed, Process, current

ANSWERS, FILES = "worker killed between counting and answering", "worker killed at a file"
# Growing, naming a record, closing; deleting what was adopted, leaving it to others.
AT_FILES = (
    (Journal, "_grow_file"),
    (Journal, "cell"),
    (Journal, "_close_file"),
    (DeadJournal, "delete"),
    (DeadJournal, "release"),
)


class Ends:
    """Fuses of workers, each of one kind."""

    def __init__(self, kill: Callable[[Process], None], count: Callable[[str, str], None]) -> None:
        self._fuses: dict[Process, tuple[str, int]] = {}
        self._kill = kill
        self._count = count

    def arm(self, process: Process, kind: str, effects: int) -> None:
        """Kill it at an effect of this kind, after so many others of it."""
        self._fuses[process] = kind, effects

    def clear(self) -> None:
        self._fuses.clear()

    def reached(self, kind: str) -> None:
        """The present process has come to an effect of this kind, or just had it; raises Killed when that ends it."""
        process = current()
        if process is None or not process.alive or process not in self._fuses:
            return
        awaited, effects = self._fuses[process]
        if awaited != kind:
            return
        if effects:
            self._fuses[process] = kind, effects - 1
            return
        del self._fuses[process]
        self._count(kind, process.name)
        self._kill(process)
        raise Killed

    @contextmanager
    def at_files(self) -> Iterator[None]:
        """Notice effects on files, before and after each."""
        with ExitStack() as stack:
            for owner, name in AT_FILES:
                stack.enter_context(mock.patch.object(owner, name, self._around(getattr(owner, name))))
            yield

    def _around(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def around(*arguments: Any, **named: Any) -> Any:
            self.reached(FILES)
            result = effect(*arguments, **named)
            self.reached(FILES)
            return result

        return around
