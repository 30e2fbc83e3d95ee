"""A Redis Cluster of three masters, each with a replica."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from tests.servers.certificates import Certificates
from tests.servers.redis_node import RedisNode, eventually, port_with_bus
from tests.servers.redis_secured import (
    ADMINISTRATOR,
    login_of,
    server_users,
    tls,
    tls_login,
)

PASSWORD = "of-the-nodes"
MASTERS = 3
NODE_TIMEOUT_MS = 1_500
KEYS_MOST = 10_000


class RedisCluster:
    """Entering starts it, leaving ends it. ``nodes`` are the masters first, then their replicas in the same order.

    With ``certificates`` everybody speaks TLS and the program is the shipped user of the flusher.
    """

    def __init__(self, directory: Path, *, replicas: bool = True, certificates: Certificates | None = None) -> None:
        self._certificates = certificates
        self.nodes: list[RedisNode] = []
        self._directory = directory
        self._replicas = replicas
        self._ids: dict[int, str] = {}

    @property
    def url(self) -> str:
        """How the program is told of it: two of the masters."""
        if self._certificates is not None:
            return f"rediss+cluster://{login_of('quota-flusher')}@127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[1].port}"
        return f"redis+cluster://:{PASSWORD}@127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[1].port}"

    async def owner(self, key: str) -> RedisNode:
        """The master of a key, as the first node that answers says."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            try:
                ranges = await node.ask("CLUSTER", "SLOTS")
            except (RedisError, OSError):
                continue
            for first, last, master, *_ in ranges:
                if first <= slot <= last:
                    return next(found for found in self.nodes if found.port == int(master[1]))
        raise AssertionError(f"nobody has slot {slot}")

    async def fails_over(self, key: str, old: RedisNode) -> RedisNode:
        """Wait until another node has a key and every node that lives agrees."""

        async def another() -> bool:
            return (await self.owner(key)) is not old and await self._well()

        await eventually(another, 40, self.nodes[-1].log)
        return await self.owner(key)

    async def begin_move(self, key: str, target: RedisNode) -> None:
        """Announce that a slot moves; from now on both sides have part of it."""
        slot, source = key_slot(key.encode()), await self.owner(key)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source.port])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[target.port])

    async def move_keys(self, key: str, target: RedisNode, named: str = "") -> int:
        """Move the keys of a slot, or those with a name that holds a text, as `redis-cli --cluster reshard` does."""
        slot, source = key_slot(key.encode()), await self.owner(key)
        found = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, KEYS_MOST)
        keys = [name for name in found if named.encode() in name]
        if keys:
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "AUTH", PASSWORD, "KEYS", *keys)
        return len(keys)

    async def end_move(self, key: str, target: RedisNode) -> None:
        """Give the slot to its new owner."""
        slot, source = key_slot(key.encode()), await self.owner(key)
        for node in (target, source, *(n for n in self.nodes[:MASTERS] if n not in (target, source))):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", self._ids[target.port])

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
        for number in range(MASTERS * (2 if self._replicas else 1)):
            port = port_with_bus()
            lines = [
                *self._door(port),
                "cluster-enabled yes",
                f"cluster-node-timeout {NODE_TIMEOUT_MS}",
                "cluster-require-full-coverage no",
                "repl-diskless-sync-delay 0",
                "repl-ping-replica-period 1",
                'save ""',
            ]
            node = RedisNode(
                self._directory / f"node-{number}", lines, password=self._password, port=port, login=self._login
            )
            self.nodes.append(node)
            node.start()
        await asyncio.gather(*(node.answers() for node in self.nodes))
        for number, node in enumerate(self.nodes):
            self._ids[node.port] = (await node.ask("CLUSTER", "MYID")).decode()
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                first, end = (REDIS_CLUSTER_HASH_SLOTS * part // MASTERS for part in (number, number + 1))
                await node.ask("CLUSTER", "ADDSLOTS", *range(first, end))
            await node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        for number, node in enumerate(self.nodes[MASTERS:]):
            master = self._ids[self.nodes[number].port]
            await eventually(lambda node=node, master=master: node.says(master, "CLUSTER", "NODES"), 20, node.log)  # type: ignore[misc]
            await node.ask("CLUSTER", "REPLICATE", master)
        await eventually(self._well, 30, self.nodes[0].log)
        for node in self.nodes[MASTERS:]:
            await eventually(lambda node=node: node.says("master_link_status:up", "INFO", "replication"), 20, node.log)  # type: ignore[misc]

    def _door(self, port: int) -> list[str]:
        if self._certificates is None:
            return [f"port {port}", f"requirepass {PASSWORD}", f"masterauth {PASSWORD}"]
        return [
            *tls(self._certificates, port),
            "tls-cluster yes",
            "tls-replication yes",
            *server_users(),
        ]

    @property
    def _password(self) -> str:
        return PASSWORD if self._certificates is None else ADMINISTRATOR[1]

    @property
    def _login(self) -> dict[str, Any]:
        return {} if self._certificates is None else {"username": ADMINISTRATOR[0], **tls_login(self._certificates)}

    async def _well(self) -> bool:
        living = []
        for node in self.nodes:
            try:
                living.append((await node.ask("CLUSTER", "INFO")).decode())
            except (RedisError, OSError):
                continue
        known = f"cluster_known_nodes:{len(self.nodes)}"
        return all("cluster_state:ok" in said and known in said for said in living)

    def _end(self) -> None:
        for node in self.nodes:
            node.kill()
