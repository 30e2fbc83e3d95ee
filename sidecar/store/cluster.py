"""The nodes of a Redis Cluster.

A node that does not have a slot says who does (MOVED), and has done nothing: the command goes there, once. Nothing else
is followed. A slot that is being moved is away for scripts (ASK, TRYAGAIN), because each of them names one key that
never exists (``Keyspace.absent``): a node refuses a script that lacks a key while the slot is half here, half there.
Without it a script would find the keys that it computes gone, and begin a limit anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import MovedError

from sidecar.store.servers import Connect, Following, sample

if TYPE_CHECKING:
    from collections.abc import Collection

    from redis.asyncio import Redis

    from sidecar.redis_url import RedisUrl

ASKED_AT_ONCE = 3


class ClusterServers(Following):
    """Every node, and which slots it has."""

    spread = True

    def __init__(self, url: RedisUrl, connect: Connect) -> None:
        super().__init__(connect)
        self._url = url
        self._masters: list[str] = [""] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: dict[str, str] = {}  # URL -> address, replicas included

    async def run(self, key: str, words: tuple[Any, ...]) -> Any:
        client = await self.owner(key)
        try:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]
        except MovedError as moved:
            slot = key_slot(key.encode())
            host = moved.host or self._host_of(self._masters[slot])
            self._masters[slot] = self._url.server(host.strip("[]"), moved.port)
            self.doubt()
            return await self._client(self._masters[slot]).execute_command(*words)  # type: ignore[no-untyped-call]

    async def owner(self, key: str) -> Redis:
        slot = key_slot(key.encode())
        if not self._nodes:
            await self._learn()
        if not self._masters[slot]:
            self.doubt()
            raise self._nobody(f"no node of the cluster has slot {slot}")
        return self._client(self._masters[slot])

    async def everyone(self) -> dict[str, Redis]:
        await self._learn()
        if not self._nodes:
            raise self._nobody("no node of the cluster answers")
        return {address: self._client(url) for url, address in self._nodes.items()}

    async def _ask(self) -> Collection[str]:
        """Whoever answers first is believed: where it is behind, MOVED says better."""
        seeds = {self._url.server(host, port) for host, port in self._url.hosts}
        known = sample(self._nodes, ASKED_AT_ONCE)
        failure: Exception = self._nobody("nobody to ask")
        for urls in (known, sample(seeds - set(known), ASKED_AT_ONCE)):
            asking = [asyncio.create_task(self._slots_by(url)) for url in urls]
            try:
                for answer in asyncio.as_completed(asking):
                    try:
                        self._masters, self._nodes = await answer
                    except Exception as error:  # noqa: BLE001 - of one node; it is raised when none answers
                        failure = error
                    else:
                        return self._nodes
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        raise failure

    async def _slots_by(self, url: str) -> tuple[list[str], dict[str, str]]:
        masters = [""] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[str, str] = {}
        for first, last, *servers in await self._asked(url, "CLUSTER", "SLOTS"):
            urls = []
            for server in servers:
                host, port = (server[0] or b"").decode(), int(server[1])
                host = host if host not in ("", "?") else self._host_of(url)  # a node that knows no address of its own
                urls.append(self._url.server(host, port))
                nodes[urls[-1]] = f"{host}:{port}"
            masters[first : last + 1] = [urls[0]] * (last + 1 - first)
        if not nodes:
            raise self._nobody("a node knows of no slots; is the cluster set up?")
        return masters, nodes

    def _host_of(self, url: str) -> str:
        return url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://").rpartition(":")[0].strip("[]")
