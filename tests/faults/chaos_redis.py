"""A Redis with a replica, and a link between them that can be frozen: what a failover to an older copy needs.

Guarantees: clients follow through proxies; the URL's password is the same for both servers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from sidecar.embedded import EmbeddedRedis
from sidecar.embedded.server import write_private
from tests.servers.tcp_proxy import TcpProxy

PASSWORD = "0123456789abcdef0123456789abcdef"
IN_SYNC_S = 20.0
POLL_S = 0.05


class RedisPair:
    """``primary`` serves, ``standby`` follows it through a proxy of its own."""

    def __init__(self, folder: Path) -> None:
        self.primary, self.standby = (EmbeddedRedis(folder / f"redis-{name}") for name in ("a", "b"))
        self.link = TcpProxy(0)

    async def start(self) -> None:
        for server in (self.primary, self.standby):
            server.directory.mkdir(mode=0o711, parents=True)
            write_private(server.directory / "password", PASSWORD)
            await server.start()
        self.link.target_port = self.primary.port
        await self.link.start()
        await self._follow()

    async def stop(self) -> None:
        await self.link.stop()
        for server in (self.primary, self.standby):
            await server.stop()

    def url(self, port: int) -> str:
        """The URL by which a client reaches the primary through a proxy on that port."""
        return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"

    async def ask(self, *words: Any, of: EmbeddedRedis | None = None) -> Any:
        """Run one command, by default at the primary."""
        async with redis.asyncio.Redis.from_url((of or self.primary).url, socket_timeout=10) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def restart(self, *, keeping: bool) -> None:
        """Kill the primary and start it again, with what it had written or with nothing."""
        os.kill(self.primary.pid, signal.SIGKILL)
        await asyncio.to_thread(self.primary._process.wait)  # type: ignore[union-attr]
        if not keeping:
            for path in self.primary.directory.glob("appendonly*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (self.primary.directory / "dump.rdb").unlink(missing_ok=True)
        await self.primary.start()

    async def hang(self, seconds: float) -> None:
        os.kill(self.primary.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(self.primary.pid, signal.SIGCONT)

    async def fail_over(self, frozen_s: float, clients: Sequence[TcpProxy], apart_s: float) -> None:
        """Freeze replication, promote the replica that lags behind, and let the old primary become its replica.

        ``apart_s``: so long the first client still reaches the old primary.
        """
        await self._in_sync()
        self.link.hold_up()
        await asyncio.sleep(frozen_s)
        old, new = self.primary, self.standby
        # Cut before the promotion, or what was held up would still arrive.
        await self.link.stop()
        await self.ask("REPLICAOF", "NO", "ONE", of=new)
        self.primary, self.standby = new, old
        for client in clients[1:]:
            client.retarget(new.port)
        if apart_s:
            await asyncio.sleep(apart_s)
        clients[0].retarget(new.port)
        self.link.resume(late=False)
        self.link.target_port = new.port
        await self.link.start()
        await self._follow()

    async def _follow(self) -> None:
        await self.ask("CONFIG", "SET", "masterauth", PASSWORD, of=self.standby)
        await self.ask("REPLICAOF", "127.0.0.1", self.link.port, of=self.standby)

    async def _in_sync(self) -> None:
        """Wait until the replica has a copy: promoting one that never had any is a wipe, another fault."""
        told: dict[str, Any] = {}
        deadline = asyncio.get_running_loop().time() + IN_SYNC_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                told = await self.ask("INFO", "replication", of=self.standby)
            except (RedisError, OSError) as error:
                told = {"error": error}
            if told.get("master_link_status") == "up":
                return
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"the replica did not follow within {IN_SYNC_S} s: {told}")
