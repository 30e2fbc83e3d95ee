"""The Redis of a run, one server or a cluster of three, and the CPU it used."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from sidecar.embedded import EmbeddedRedis
from tests.servers.redis_cluster import RedisCluster

OTHER_FILES = 500  # of a Redis beside its clients


class Servers:
    """Where writers connect, and a look at every node."""

    def __init__(self, url: str, nodes: list[Redis]) -> None:
        self.url = url
        self._nodes = nodes

    async def used(self) -> Used:
        """What all nodes have used so far."""
        cpu_s = calls = script_us = 0.0
        for node in self._nodes:
            cpu = await node.info("cpu")
            cpu_s += float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
            stats: dict[str, dict[str, Any]] = await node.info("commandstats")
            script = stats.get("cmdstat_evalsha", {})
            calls += float(script.get("calls", 0))
            script_us += float(script.get("usec", 0))
        return Used(cpu_s, calls, script_us)


class Used:
    """CPU seconds, script calls, and microseconds that scripts ran."""

    def __init__(self, cpu_s: float, calls: float, script_us: float) -> None:
        self.cpu_s = cpu_s
        self.calls = calls
        self.script_us = script_us

    def since(self, before: Used) -> Used:
        return Used(self.cpu_s - before.cpu_s, self.calls - before.calls, self.script_us - before.script_us)


async def roomy(client: Redis) -> None:
    """Let a server take as many clients as it has files; a thousand writers are more than it takes by default."""
    await client.config_set("maxclients", resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)


@asynccontextmanager
async def one_server(directory: Path) -> AsyncIterator[Servers]:
    server = EmbeddedRedis(directory / "redis")
    await server.start()
    try:
        async with Redis.from_url(server.url, protocol=2) as client:
            await roomy(client)
            yield Servers(server.url, [client])
    finally:
        await server.stop()


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Servers]:
    async with RedisCluster(directory / "cluster", replicas=False) as running:
        clients = [node.client() for node in running.nodes]
        try:
            for client in clients:
                await roomy(client)
            yield Servers(running.url, clients)
        finally:
            for client in clients:
                await client.aclose()
