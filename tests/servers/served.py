"""One `sidecar serve` (a worker and a flusher) whose Redis is its own and reached through a proxy.

Guarantees: nothing else uses this Redis: it may be stopped, hung, cut off and asked what it was called for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import asyncpg
import redis.asyncio

from sidecar.embedded import EmbeddedRedis
from sidecar.embedded.port import free_port
from sidecar.ledger import keys, plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.store.keys import Keyspace
from tests.servers.program import Program
from tests.servers.tcp_proxy import TcpProxy

PROJECTED_S = 15.0
POLL_S = 0.02
KEYS = Keyspace()
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class Served:
    """Entering starts everything; ``dsn`` is a migrated, empty database.

    ``small_disk``: its state lies on a small file system of its own, where that may be mounted.
    """

    def __init__(
        self,
        folder: Path,
        dsn: str,
        catalogue: Path,
        env: Mapping[str, str],
        *,
        workers: int = 1,
        small_disk: bool = False,
    ) -> None:
        self.redis = EmbeddedRedis(folder / "redis", durable=False)
        self.proxy = TcpProxy(0)
        self.authz_port = free_port()
        self._folder = folder
        self._dsn = dsn
        self._catalogue = catalogue
        self._env = env
        self._workers = workers
        self._small_disk = small_disk
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        assert self._program is not None, "not started"
        return self._program

    async def start(self) -> None:
        await self.redis.start()
        self.proxy.target_port = self.redis.port
        await self.proxy.start()
        ledger = await Ledger.open(self._dsn, connections_max=1)
        async with ledger.transaction() as tx:
            await plans.apply(tx, self._catalogue.read_text(), {}, actor="test")
        await ledger.close()
        environment = {
            "SIDECAR_AUTHZ_LISTEN": f"127.0.0.1:{self.authz_port}",
            "SIDECAR_LOCAL_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_REDIS_URL": self.redis.url.replace(f":{self.redis.port}/", f":{self.proxy.port}/"),
            "SIDECAR_POSTGRES_DSN": self._dsn,
            **self._env,
        }
        roles = ["--role", "authz,flusher", "--workers", str(self._workers)]
        self._program = Program("served", self._folder, roles, environment)
        if self._small_disk:
            self._program.disk.attach()
        self._program.start()
        await self._program.ready()

    async def stop(self) -> None:
        """Redis last: the worker reports what it has."""
        self.proxy.resume()
        if self._program is not None:
            await self._program.stop()
            self._program.disk.detach()
        await self.proxy.stop()
        await self.redis.stop()

    def worker(self) -> int:
        """The process of the first worker that decides; 0 while there is none."""
        for pid in sorted(self.program.children()):
            with contextlib.suppress(OSError):
                if b"_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    async def new_tenants(self, *on_plans: str) -> list[tuple[str, str]]:
        """A tenant that nobody else uses for each of the plans, with its API key; Redis knows them."""
        ledger = await Ledger.open(self._dsn, connections_max=1)
        found = []
        try:
            async with ledger.transaction() as tx:
                for plan in on_plans:
                    name = f"{plan}-{secrets.token_hex(4)}"
                    await tenants.put(tx, name, plan=plan, actor="test")
                    found.append((name, (await keys.create(tx, name, actor="test")).secret))
        finally:
            await ledger.close()
        await self.flush()
        return found

    async def flush(self) -> None:
        """Have everything counted or changed so far arrive everywhere."""
        status, told = await self.program.command("flush")
        assert status == 0, told

    async def verify(self) -> str:
        """What `sidecar verify` says; "[]" when all agree."""
        return (await self.program.command("verify", "--json"))[1].strip()

    async def counted(self, tenant: str) -> int:
        """What the ledger has of a tenant."""
        connection = await asyncpg.connect(self._dsn)
        try:
            return int(
                await connection.fetchval(
                    "select coalesce(sum(amount), 0) from usage_windows where tenant = $1 and scope = ''", tenant
                )
            )
        finally:
            await connection.close()

    async def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics, added up over what is not named."""
        found = 0.0
        for family, given, value in _SAMPLE.findall(await self.program.metrics()):
            if family == name and all(f'{label}="{wanted}"' in given for label, wanted in labels.items()):
                found += float(value)
        return found

    async def calls(self) -> dict[str, int]:
        """How often Redis ran each command since it started."""
        async with redis.asyncio.Redis.from_url(self.redis.url, socket_timeout=10) as client:
            told: dict[str, Any] = await client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in told.items()}

    def memory_mb(self) -> float:
        """What the program and its children hold."""
        pids = [self.program.pid, *self.program.children()]
        held = (line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(line.split()[1]) for line in held if line.startswith("VmRSS:")) / 1_024

    def hang(self) -> None:
        """Redis accepts connections and never answers."""
        os.kill(self.redis.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.redis.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def eventually(condition: Any, within_s: float = PROJECTED_S) -> None:
    """Wait until an awaitable condition holds."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"did not come true within {within_s} s"
        await asyncio.sleep(POLL_S)
