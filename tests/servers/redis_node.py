"""A redis-server (or a sentinel) by itself, with whatever configuration a test needs.

Guarantees: it dies with the tests; its port, and the one of its cluster bus, were free.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from sidecar.embedded.child import spawn
from sidecar.embedded.port import free_port, is_free
from sidecar.embedded.redis import find_redis

START_S = 20
BUS = 10_000
BUS_LAST = 65_000


_given: set[int] = set()


def port_with_bus() -> int:
    """A free port whose cluster bus port is free as well; neither is one that was given before and may be used soon."""
    while True:
        port = free_port()
        both = {port, port + BUS}
        if port + BUS < BUS_LAST and is_free(port + BUS) and _given.isdisjoint(both):
            _given.update(both)
            return port


class RedisNode:
    """One process; ``lines`` are its configuration, ``arguments`` follow it on the command line.

    ``login`` is what the test's own client needs beyond the password, such as a user or certificates.
    """

    def __init__(
        self,
        directory: Path,
        lines: list[str],
        *arguments: str,
        password: str = "",
        port: int = 0,
        login: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.password = password
        self._login = dict(login or {})
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        text = "\n".join([f"dir {directory}", f'logfile "{directory}/log"', "bind 127.0.0.1", *lines])
        self._configuration = directory / "redis.conf"
        self._configuration.write_text(f"{text}\n")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = spawn(
            [str(find_redis()), str(self._configuration), *self._arguments],
            directory=self.directory,
            output=subprocess.DEVNULL,
            death_signal=signal.SIGKILL,
        )

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a word, also when it is stopped."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def client(self) -> Redis:
        """A client of its own for the test."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password or None,
            protocol=2,
            socket_timeout=5,
            **self._login,
        )

    async def ask(self, *words: Any) -> Any:
        """One command, with a raw answer."""
        async with self.client() as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def says(self, wanted: str, *words: Any) -> bool:
        """Whether an answer holds a text; False while it does not answer."""
        try:
            return wanted in _text(await self.ask(*words))
        except (RedisError, OSError):
            return False

    async def answers(self) -> None:
        """Wait until it does."""
        await eventually(lambda: self.says("PONG", "ECHO", "PONG"), START_S, self.log)

    def log(self) -> str:
        """The end of its log."""
        try:
            return (self.directory / "log").read_text()[-2_000:]
        except OSError:
            return "no log"


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float, why: Callable[[], str]) -> None:
    """Wait for something that only asking can tell."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, why()
        await asyncio.sleep(0.05)


def _text(answer: Any) -> str:
    if isinstance(answer, dict):  # of INFO
        return "\n".join(f"{name}:{value}" for name, value in answer.items())
    return answer.decode() if isinstance(answer, bytes) else str(answer)
