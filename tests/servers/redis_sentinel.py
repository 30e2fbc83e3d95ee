"""A master, a replica and three sentinels, with passwords of their own for servers and sentinels."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.embedded.port import free_port
from tests.servers.certificates import Certificates
from tests.servers.redis_node import RedisNode, eventually
from tests.servers.redis_secured import (
    ADMINISTRATOR,
    OTHERS_PASSWORD,
    login_of,
    server_users,
    tls,
    tls_login,
)

NAME = "quota"
PASSWORD = "of-the-servers"
SENTINEL_PASSWORD = "of/the@sentinels"
DOWN_AFTER_MS = 800


class RedisSentinel:
    """Entering starts all of it, leaving ends it.

    With ``certificates`` everybody speaks TLS and has a user of his own: those that are shipped and described.
    """

    def __init__(self, directory: Path, certificates: Certificates | None = None) -> None:
        self._directory = directory
        self._certificates = certificates
        self.servers: list[RedisNode] = []
        self.sentinels: list[RedisNode] = []

    @property
    def url(self) -> str:
        """How the program is told of it."""
        return self.url_of("quota-flusher")

    def url_of(self, user: str) -> str:
        """The same for one of the shipped users; without certificates all have one password."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        if self._certificates is not None:
            return f"rediss+sentinel://{login_of(user)}@{hosts}/{NAME}?sentinel_password=of%2Fthe%40sentinels"
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{NAME}?sentinel_password=of%2Fthe%40sentinels"

    async def master(self) -> RedisNode:
        """Whoever the first sentinel that answers says it is."""
        for sentinel in self.sentinels:
            if await sentinel.says(NAME, "SENTINEL", "MASTER", NAME):
                _, port = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
                return next(server for server in self.servers if server.port == int(port))
        raise AssertionError("no sentinel answers")

    async def fails_over(self, old: RedisNode) -> RedisNode:
        """Wait until the sentinels name another master, and it is one."""

        async def another() -> bool:
            found = await self.master()
            return found is not old and await found.says("role:master", "INFO", "replication")

        await eventually(another, 30, self.sentinels[0].log)
        return await self.master()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def _start(self) -> None:
        for number in range(2):
            lines = [
                *self._users(),
                "repl-diskless-sync-delay 0",
                "repl-ping-replica-period 1",
                'save ""',
            ]
            if self.servers:
                lines.append(f"replicaof 127.0.0.1 {self.servers[0].port}")
            self.servers.append(self._node(f"server-{number}", lines))
        for server in self.servers:
            server.start()
            await server.answers()
        await eventually(
            lambda: self.servers[1].says("master_link_status:up", "INFO", "replication"), 20, self.servers[1].log
        )
        for number in range(3):
            lines = [
                f"sentinel monitor {NAME} 127.0.0.1 {self.servers[0].port} 2",
                f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {NAME} 4000",
                *self._sentinels_login(),
                f'requirepass "{SENTINEL_PASSWORD}"',
                f'sentinel sentinel-pass "{SENTINEL_PASSWORD}"',
            ]
            self.sentinels.append(self._node(f"sentinel-{number}", lines, "--sentinel", password=SENTINEL_PASSWORD))
            self.sentinels[-1].start()
        await asyncio.gather(*(eventually(lambda s=s: _ready(s), 30, s.log) for s in self.sentinels))  # type: ignore[misc]

    def _users(self) -> list[str]:
        if self._certificates is None:
            return [f"requirepass {PASSWORD}", f"masterauth {PASSWORD}"]
        return server_users()

    def _sentinels_login(self) -> list[str]:
        if self._certificates is None:
            return [f"sentinel auth-pass {NAME} {PASSWORD}"]
        return [f"sentinel auth-user {NAME} sentinel", f"sentinel auth-pass {NAME} {OTHERS_PASSWORD}"]

    def _node(self, name: str, lines: list[str], *arguments: str, password: str = "") -> RedisNode:
        """A server, or a sentinel, which has a password of its own and no users."""
        port = free_port()
        where, login = [f"port {port}"], {}
        if self._certificates is not None:
            where = [*tls(self._certificates, port), "tls-replication yes"]
            login = tls_login(self._certificates)
            if not password:
                login["username"], password = ADMINISTRATOR
        lines = [*where, *lines]
        return RedisNode(
            self._directory / name, lines, *arguments, password=password or PASSWORD, port=port, login=login
        )

    def _end(self) -> None:
        for node in (*self.sentinels, *self.servers):
            node.kill()


async def _ready(sentinel: RedisNode) -> bool:
    """Whether it knows the replica and both of the others."""
    try:
        flat = [word.decode() for word in await sentinel.ask("SENTINEL", "MASTER", NAME)]
    except Exception:  # noqa: BLE001 - not yet
        return False
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    return (found["num-slaves"], found["num-other-sentinels"], found["flags"]) == ("1", "2", "master")
