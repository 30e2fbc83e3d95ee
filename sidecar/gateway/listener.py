"""The decision listener: sockets, connections and their time.

Guarantees: what it takes from its peers is bounded (ListenerLimits); off loopback it serves only peers that know a
            shared secret or hold a client certificate; a stop answers what is in flight.
Gives up:   exact timeouts: one coarse timer looks at every connection once a second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import ssl
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

from sidecar import address
from sidecar.address import Address
from sidecar.clock import Clock
from sidecar.errors import SettingsInvalid
from sidecar.gateway.answers import AnswerWriter
from sidecar.gateway.connection import Connection
from sidecar.gateway.counters import GatewayCounters
from sidecar.gateway.gate import Enforcer, Gate
from sidecar.gateway.limits import ListenerLimits

# Connections are swept in rows, one row a tick, so that many of them cannot hold up a decision.
ROWS = 8
TICK_S = 0.125
BACKLOG = 1_024
SOCKET_MODE = 0o660

log = logging.getLogger(__name__)


class Clocks(Protocol):
    """The two clocks of a process; sidecar.clock.Clock is the real one."""

    def wall_s(self) -> int: ...

    def monotonic_ms(self) -> int: ...


class DecisionListener:
    """Listens for checks and answers them from an enforcer.

    ``secrets`` are the values of x-quota-secret that are accepted, several while one is replaced. They are asked for
    off loopback, and everywhere when ``require_secret``; ``tls`` that verifies client certificates stands in for them.
    """

    def __init__(
        self,
        enforcer: Enforcer,
        *,
        secrets: Iterable[str] = (),
        require_secret: bool = False,
        limits: ListenerLimits | None = None,
        clock: Clocks | None = None,
        counters: GatewayCounters | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or ListenerLimits()
        self.counters = counters or GatewayCounters()
        self._clock = clock or Clock()
        self._secrets = tuple(secret.encode() for secret in secrets)
        if not all(self._secrets):
            raise SettingsInvalid("a secret of the decision listener is empty; write one of at least 16 characters")
        if require_secret and not self._secrets:
            raise SettingsInvalid("the decision listener is to ask for a secret, but none is set")
        self._require_secret = require_secret
        self._tls = tls
        self.gate = Gate(enforcer, AnswerWriter(self._clock.wall_s), self.counters, self._secrets)
        self.now_ms = self._clock.monotonic_ms()
        self._servers: list[asyncio.Server] = []
        self._addresses: list[Address] = []
        self._rows: list[set[Connection]] = [set() for _ in range(ROWS)]
        self._places = itertools.cycle(self._rows)
        self._turns = itertools.cycle(self._rows)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        self._stopping = False
        self._failures_seen = 0
        self._failing = False

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that were really taken."""
        return [str(where) for where in self._addresses]

    async def start(self, addresses: Iterable[str], *, reuse_port: bool = False) -> None:
        """Listen on every address or on none. Raises SettingsInvalid that says what is in the way."""
        sockets: list[tuple[Address, socket.socket]] = []
        try:
            for text in addresses:
                where = address.parse(text)
                self._check_guarded(where)
                sockets.append(_opened(where, text, reuse_port=reuse_port))
        except BaseException:
            for _, opened in sockets:
                opened.close()
            raise
        self._stopping = False
        self.gate.refresh()  # the first request is already read by the catalogue that came while nobody listened
        loop = asyncio.get_running_loop()
        for where, opened in sockets:
            trusted = not self._asks_secret(where)
            server = await loop.create_server(
                lambda trusted=trusted: Connection(self, trusted=trusted),
                sock=opened,
                ssl=self._tls if where.kind == "tcp" else None,
                backlog=BACKLOG,
            )
            self._servers.append(server)
            self._addresses.append(where)
        self._timer = loop.call_later(TICK_S, self._tick)

    async def stop(self, deadline_s: float = 5.0) -> None:
        """Accept nothing more, answer what is in flight, close; what is left at the deadline is cut."""
        self._stopping = True
        for where in self._addresses:
            if where.kind == "unix":
                # While it is served nobody else takes the path, so this is still our file.
                Path(where.path).unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
        for server in self._servers:
            server.close()
        for connection in self._connections():
            connection.finish()
        if self.counters.connections:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), deadline_s)
            except TimeoutError:
                for connection in self._connections():
                    connection.abort()
                log.warning("connections cut at the end of the stop", extra={"connections": self.counters.connections})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._servers.clear()
        self._addresses.clear()

    # What connections call.

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, unless there are too many."""
        if self.counters.connections >= self.limits.connections_max or self._stopping:
            self.counters.connections_refused += 1
            return False
        self.counters.connections += 1
        next(self._places).add(connection)
        return True

    def release(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        for row in self._rows:
            if connection in row:
                row.discard(connection)
                self.counters.connections -= 1
                if not self.counters.connections:
                    self._quiet.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the answering of a connection that waits."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Time.

    def sweep(self, row: set[Connection] | None = None) -> None:
        """Close the connections of a row, or all, whose time is over; log when decisions begin or cease to fail."""
        self.now_ms = self._clock.monotonic_ms()
        self.gate.refresh()
        for connection in self._connections() if row is None else tuple(row):
            connection.sweep(self.now_ms)
        failures = self.counters.failures
        failing = failures != self._failures_seen
        self._failures_seen = failures
        if failing and not self._failing:
            log.error("decisions fail and are answered 500", exc_info=self.gate.failure)
        elif self._failing and not failing:
            log.info("decisions no longer fail", extra={"failures": failures})
            self.gate.failure = None
        self._failing = failing

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self.sweep(next(self._turns))

    def _connections(self) -> list[Connection]:
        return [connection for row in self._rows for connection in row]

    # Who may ask.

    def _asks_secret(self, where: Address) -> bool:
        return self._require_secret or not (where.loopback or self._verifies_clients())

    def _verifies_clients(self) -> bool:
        return self._tls is not None and self._tls.verify_mode is ssl.CERT_REQUIRED

    def _check_guarded(self, where: Address) -> None:
        if self._asks_secret(where) and not self._secrets:
            raise SettingsInvalid(
                f"{where} is reachable from other machines, which could then ask in anybody's name; set a shared "
                "secret that gateways send as x-quota-secret, or listen on loopback or a unix: socket"
            )


def _opened(where: Address, text: str, *, reuse_port: bool) -> tuple[Address, socket.socket]:
    if where.kind == "tcp" and not reuse_port:
        opened = address.bind(where, share=False)
        try:
            opened.listen(BACKLOG)
        except OSError as error:
            opened.close()
            raise SettingsInvalid(f"{where} is taken by another process; stop it or choose another port") from error
    else:
        opened = address.listen(text)
    if where.kind == "tcp":
        return Address("tcp", host=where.host, port=opened.getsockname()[1]), opened
    if where.kind == "unix":
        Path(where.path).chmod(SOCKET_MODE)
    return where, opened
