"""A child process whose output lines are read as they come, so that tests wait for a line and never sleep.

Guarantees: neither pipe ever fills up; stop() leaves no process behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


class Child:
    """One running program. ``out`` and ``err`` are its lines so far."""

    def __init__(self, command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._open = 2
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_line(self, pattern: str, timeout_s: float = 20) -> str:
        """The first line of either stream that matches; fails at once when the program ends without it."""
        found = self.wait(lambda: next((line for line in self.lines() if re.search(pattern, line)), None), timeout_s)
        assert found is not None, f"{self.command[0]} did not print {pattern!r}:\n{self.tail()}"
        return found

    def wait(self, condition: Callable[[], T], timeout_s: float = 20) -> T:
        """Wait until the condition holds of the lines, or the program ended, or the time is up; its last value."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._open == 0, timeout_s)
            return condition()

    def lines(self) -> list[str]:
        return [*self.out, *self.err]

    def tail(self) -> str:
        return "\n".join([*self.out[-20:], *self.err[-40:]])

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Ask to end, insist when that does not help, and return the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            reader.join(5)
            # Closing what a thread still reads (a grandchild holds the other end) would wait for that grandchild.
            if stream is not None and not reader.is_alive():
                stream.close()
        return status

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
