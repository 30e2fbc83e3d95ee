"""Sees every script that a server runs, and tells the oracle what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.store import snapshots
from sidecar.store.messages import SYNC_REPLY, SyncReply
from tests.simulation.minutes import Kept, LimitKey, Message, read

if TYPE_CHECKING:
    from tests.simulation.oracle import Oracle
    from tests.simulation.redis import MemoryRedis
    from tests.simulation.world import World


class Witness:
    """Of one run. Signs of life, leases taken back, limits of seconds and minutes, and needs that are not met (L3)."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._world = world
        self._oracle = oracle

    def heard(self, server: MemoryRedis, key: bytes, field: bytes, units: int) -> None:
        self._oracle.taken_back(server, key, field, units)

    def ran(self, server: MemoryRedis, script: str, arguments: tuple[Any, ...], answer: Any) -> None:
        if script == "publish":
            for revision, document in zip(answer, arguments[2:], strict=True):
                if revision >= 0:
                    self._oracle.published(server, snapshots.decode(document))
        elif script == "retire" and not int(arguments[3]):
            # A worker that stops may still count for who waited, and leaves its journal to a successor then. What it
            # said of itself may come once more after its end.
            sender = msgspec.msgpack.decode(arguments[0])[2].rpartition("-")[0]
            if any(one.core.writer == arguments[1] and one.process.name == sender for one in self._world.workers()):
                self._oracle.retiring.add(arguments[1])
            elif not self._world.lost_state:
                self._oracle.retired(server, arguments[1])
        elif script == "sync":
            self._synced(server, arguments[0], msgspec.msgpack.decode(arguments[2]), SYNC_REPLY.decode(answer))

    def _synced(self, server: MemoryRedis, context: bytes, message: list[Any], reply: SyncReply) -> None:
        """Note a sign of life, and that a need was met if there was room for it."""
        writer, parts = message[0], message[4]
        tag = msgspec.msgpack.decode(context)[0]
        if reply.granting:
            self._oracle.grants(server, tag, reply.generation)
        if self._world.minutes:
            self._look(server, tag, writer, parts, reply)
        if not reply.accepted:
            return
        if message[2] != reply.generation:
            self._oracle.violated("L2", f"{writer} shows life in {reply.generation} by a message of {message[2]!r}")
        self._oracle.accepted(server, tag, writer, reply.generation, message[1])
        for part, answered in zip(parts, reply.parts, strict=True):
            snapshot = self._oracle.snapshots.get(part[0])
            if snapshot is not None and answered.revision == part[1] < snapshot.rev and not self._world.lost_state:
                self._oracle.violated("L1", f"{writer} reports {part[0]} by revision {part[1]} of {snapshot.rev}")
            if not reply.granting or snapshot is None or answered.revision != part[1] or snapshot.rev != part[1]:
                continue
            for (name, limit_id, start, end_ms, _, left, need, *_), lease in zip(part[3], answered.leases, strict=True):
                short = left + need - lease.units
                if not need or short <= 0:
                    continue
                stop = next((rule.stop for rule in snapshot.limits if rule.name == name), None)
                if stop is not None and server.clock() < end_ms and stop - lease.spent - lease.held >= short:
                    about = f"{writer} needs {need} of {part[0]} {limit_id} {start}: {lease} of {stop}"
                    self._oracle.violated("L3", about)

    def _look(self, server: MemoryRedis, tag: str, writer: str, parts: list[Any], reply: SyncReply) -> None:
        """Look at the limits of seconds and minutes that a message spoke of."""
        about = Message(writer, reply.generation.encode(), reply.granting, reply.accepted)

        def unheard(other: str) -> bool:
            """Whether it has told nothing in this generation, or retired: that alone makes it known there."""
            generation, dead = server.command(b"HMGET", (f"{tag}writer:{other}", "gen", "dead"))
            return bool(generation != about.generation or dead)

        for part, answered in zip(parts, reply.parts, strict=True):
            tenant, small = part[0], [lease for lease in part[3] if lease[4]] if answered.leases else []
            leases = [
                (self._world.keys.limit(tenant, one[1], one[2]), (tenant, one[1], one[2]), one[3]) for one in small
            ]
            if leases:
                self._oracle.minutes.look(server, about, leases, unheard)

    def kept(self, key: LimitKey) -> Kept | None:
        """What Redis has of a limit of a second or a minute."""
        keys, server = self._world.keys, self._world.redis
        generation = server.command(b"HGET", (keys.epoch(keys.shard_of(key[0])), "gen"))
        return read(server, keys.limit(*key), generation)
