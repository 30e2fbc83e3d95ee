"""The store: typed calls of the Lua scripts on Redis.

Guarantees: a call answers within its timeout or raises StoreUnavailable; nothing is retried here, because every
            message may be repeated by its sender; while the breaker is open only a probe reaches Redis. In a cluster
            each shard has a breaker of its own.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from redis.exceptions import RedisError

from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.store.calls import Calls
from sidecar.store.fitness import information, refuse_login, refuse_unfit
from sidecar.store.keys import unescaped
from sidecar.store.messages import (
    COLLECTED,
    ENCODER,
    SYNC_REPLY,
    Changes,
    Collected,
    Glance,
    Lookup,
    StoredCatalogue,
    SyncMessage,
    SyncReply,
)
from sidecar.store.pool import connect
from sidecar.store.scripts import load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from sidecar.clock import Clock
    from sidecar.store.keys import Keyspace
    from sidecar.store.messages import Publication

T = TypeVar("T")

CHANGES_KEPT = 10_000
CHANGES_READ_MOST = 1_000
CHANGES_ANNOUNCED_AT_ONCE = 500
WINDOWS_RESENT_AT_ONCE = 500
# Some milliseconds of Redis' time; windows beyond it wait for the next call.
COUNTERS_COLLECTED_MOST = 8_000
# Answers to publish that are no revision: the shard is in another state; the tenant's old windows changed meanwhile.
MOVED_ON = -1
OUTDATED = -2


class Store:
    """Connections to Redis and the calls on them; times are milliseconds, units base units.

    ``identity`` makes ids of new generations unique to this process.
    """

    def __init__(
        self,
        url: str,
        keys: Keyspace,
        clock: Clock,
        *,
        identity: str,
        timeout_ms: int,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
    ) -> None:
        self.keys = keys
        self._clock = clock
        self._identity = identity
        self._scripts = load()
        self._generations = 0
        named = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
        files = {option: path for option, path in named.items() if path}
        self._calls = Calls(url, connect, clock, timeout_ms=timeout_ms, files=files)
        self._breakers = [self._calls.breaker(keys.epoch(shard)) for shard in range(keys.shards)]
        self.calls = self._calls.made
        self.errors = self._calls.errors

    @property
    def available(self) -> bool:
        """Whether all of Redis answers; False while a breaker is open."""
        return self._calls.available

    @property
    def breaker_opened(self) -> int:
        """How often a breaker opened."""
        return self._calls.breaker_opened

    def reachable(self, shard: int) -> bool:
        """Whether a request may wait for this shard; False while its breaker is open."""
        return not self._breakers[shard].open

    def callable(self, shard: int) -> bool:
        """Whether a call would be made now: the shard's breaker is closed, or a probe is due."""
        return self._breakers[shard].would_allow(self._clock.monotonic_ms())

    async def close(self) -> None:
        """Close every connection."""
        await self._calls.servers.close()

    async def check(self) -> None:
        """Refuse servers that are too old, evict, or do not let us in. StoreUnavailable: none answers."""
        silent: Exception | None = None
        checked = 0
        try:
            servers = await self._calls.everyone("info")
        except StoreUnavailable as error:
            refuse_login("", error)
            raise
        for address, client in servers.items():
            try:
                await refuse_unfit(address, client)
                checked += 1
            except (RedisError, OSError) as error:
                refuse_login(address, error)
                silent = error
        if not checked:
            raise StoreUnavailable(f"{type(silent).__name__} during check: {silent}") from silent

    async def evicted_keys(self) -> int:
        """Keys that Redis threw away since it started, on all servers that answer; 0 where they do not say."""
        evicted = 0
        for client in (await self._calls.everyone("info")).values():
            with contextlib.suppress(RedisError, OSError):
                evicted += int((await information(client, "stats")).get("evicted_keys", 0))
        return evicted

    async def sync(self, shard: int, message: SyncMessage, reclaim_after_ms: int) -> SyncReply:
        """Report windows and leases of one writer; renew the leases."""
        keys = self.keys
        raw = await self._script(
            "sync",
            shard,
            (
                keys.writers(shard),
                keys.writer(shard, message.writer),
                keys.held(shard, message.writer),
                keys.dirty(shard),
                keys.called(shard),
            ),
            (reclaim_after_ms, ENCODER.encode(message)),
        )
        return _understood("sync", SYNC_REPLY, raw)

    async def retire(
        self, shard: int, writer: str, *, generation: str = "", lost_after_ms: int = 0, most: int = 500
    ) -> int:
        """Free the leases of a writer that died; returns how many may remain.

        ``generation``: the one that was told of its windows, if there are any. -1 when it is over by now: the next one
        has to be told first. ``lost_after_ms``: the writer is taken for lost, if it still has been silent for so long
        when the call arrives.
        """
        keys = self.keys
        remaining = await self._script(
            "retire",
            shard,
            (keys.writers(shard), keys.writer(shard, writer), keys.held(shard, writer)),
            (writer, most, lost_after_ms, generation),
        )
        return int(remaining)

    async def lookup(self, tenant: str, default: tuple[int, bytes, bytes] | None = None) -> Lookup:
        """A tenant's snapshot; one nobody knows gets ``default``: catalogue revision, snapshot, limits as msgpack."""
        shard = self.keys.shard_of(tenant)
        self._refuse_while_open(self.keys.epoch(shard))
        revision, document, limits = default or (-1, b"", b"")
        state, found, snapshot = await self._script(
            "lookup", shard, (self.keys.tenant(tenant),), (revision, document, limits)
        )
        return Lookup(restored=state == b"open", revision=int(found), document=snapshot or b"")

    async def tenant_of_key(self, sha256: str) -> str | None:
        """Tenant of an API key, None when there is no such key; StoreUnavailable while Redis is being restored."""
        shard = self.keys.shard_of(sha256)
        self._refuse_while_open(self.keys.epoch(shard))
        state, tenant = await self._script("find_key", shard, (self.keys.api_key(sha256),), ())
        if not tenant and state != b"open":
            raise StoreUnavailable("Redis is being restored; the API key may not be back yet")
        return tenant.decode() or None

    async def put_key(self, sha256: str, tenant: str | None) -> None:
        """Store an API key, or remove a revoked one (tenant None)."""
        if tenant is None:
            await self._command("DEL", self.keys.api_key(sha256))
        else:
            await self._command("SET", self.keys.api_key(sha256), tenant)

    async def changes(self, last_id: bytes, number: int) -> Changes:
        """What was announced since ``last_id``, the ``number``-th entry; b"" asks where the stream stands."""
        arguments: tuple[Any, ...] = (last_id, number, CHANGES_READ_MOST)
        if self._calls.servers.spread:
            # The server of the stream may fail over alone, and nothing else would tell that announcements got lost.
            last_id, _, server = last_id.partition(b" ")
            arguments = (last_id, number, CHANGES_READ_MOST, server)
        else:
            newest = await self._command("XREVRANGE", self.keys.changes, "+", "-", "COUNT", 1)
            if last_id and newest and newest[0][0] == last_id:
                return Changes(last_id, number, gap=False, entries=[])
        raw = await self._call("changes", (self.keys.changes,), arguments)
        pairs = [item.decode() for item in raw[3:]]
        return Changes(
            last_id=raw[0],
            number=int(raw[1]),
            gap=bool(raw[2]),
            entries=list(zip(pairs[::2], pairs[1::2], strict=True)),
        )

    async def announce(self, changes: Sequence[tuple[str, str]]) -> None:
        """Tell every sidecar of changed (kind, id); kinds are tenant, key and catalogue."""
        for first in range(0, len(changes), CHANGES_ANNOUNCED_AT_ONCE):
            flat = [part for change in changes[first : first + CHANGES_ANNOUNCED_AT_ONCE] for part in change]
            await self._call("announce", (self.keys.changes,), (CHANGES_KEPT, *flat))

    async def put_catalogue(self, revision: int, text: str, compiled: bytes = b"") -> None:
        """Store the catalogue that sidecars read, with the number of shards they must agree on."""
        words = ("revision", revision, "text", text, "compiled", compiled, "shards", self.keys.shards)
        await self._command("HSET", self.keys.catalogue, *words)

    async def catalogue_revision(self) -> int:
        """Revision of the catalogue that Redis has; 0 for none."""
        return int(await self._command("HGET", self.keys.catalogue, "revision") or 0)

    async def catalogue(self) -> StoredCatalogue | None:
        """The catalogue in force; StoreRefused when it was made for another number of shards."""
        words = ("revision", "text", "compiled", "shards")
        revision, text, compiled, shards = await self._command("HMGET", self.keys.catalogue, *words)
        if revision is None:
            return None
        if int(shards) != self.keys.shards:
            message = (
                f"Redis was set up with {int(shards)} shards, SIDECAR_SHARDS is {self.keys.shards}; use {int(shards)}"
            )
            raise StoreRefused(message)
        return StoredCatalogue(int(revision), text.decode(), compiled or b"")

    async def collect(self, shard: int, ledger_epoch: int, most: int, reclaim_after_ms: int) -> Collected:
        """Windows not yet in the ledger, oldest change first; announces the ledger pass."""
        keys = (self.keys.dirty(shard), self.keys.writers(shard))
        raw = await self._script(
            "collect", shard, keys, (ledger_epoch, most, reclaim_after_ms, COUNTERS_COLLECTED_MOST)
        )
        return _understood("collect", COLLECTED, raw)

    async def marks(self, shard: int) -> tuple[int, int]:
        """How many window changes there were, and up to which of them the ledger has all."""
        version, watermark = await self._command("HMGET", self.keys.epoch(shard), "version", "watermark")
        return int(version or 0), int(watermark or 0)

    async def glance(self, shard: int) -> Glance:
        """The marks of a shard, without a script."""
        found = await self._command(
            "HMGET", self.keys.epoch(shard), "gen", "state", "version", "watermark", "epoch", "lost"
        )
        return Glance(found[0] or b"", found[1] or b"", *[int(value or 0) for value in found[2:]])

    async def settle(
        self, shard: int, generation: str, epoch: int, windows: Sequence[tuple[str, str, int, int, int]]
    ) -> int:
        """Clear marks of (tenant, series, period, hour, version) the ledger has; returns the watermark or -1."""
        raw = await self._script(
            "settle", shard, (self.keys.dirty(shard),), (generation, epoch, ENCODER.encode(windows))
        )
        return int(raw)

    async def merge(self, shard: int, generation: str, rows: Sequence[tuple[str, str, int, int, str, int]]) -> bool:
        """Bring rows (tenant, series, period, hour, writer, amount) of the ledger back; False: generation changed."""
        return int(await self._script("merge", shard, (), (generation, ENCODER.encode(rows)))) == 1

    async def publish(
        self, shard: int, found: Sequence[Publication], collected: Collected, *, version: int
    ) -> list[int]:
        """Store snapshots of a shard and rebuild what their limits have used; returns the revisions that stand now.

        ``older`` of each was read by the ledger pass that began with ``collected``, and speaks for all window changes
        up to ``version``. MOVED_ON and OUTDATED: read the ledger again.
        """
        about = collected.generation, collected.first_direct_hour
        messages = [
            (one.tenant, one.revision, one.limits, *about, one.older, version, collected.number) for one in found
        ]
        return [
            int(revision)
            for revision in await self._script(
                "publish",
                shard,
                tuple(self.keys.tenant(one.tenant) for one in found),
                (ENCODER.encode(messages), *(one.document for one in found)),
            )
        ]

    async def open(
        self, shard: int, generation: str, *, first: bool, reclaim_after_ms: int, hold: str, writers: Sequence[str]
    ) -> int:
        """End a restore; returns when granting resumes (ms), -1 when the generation changed."""
        raw = await self._script(
            "open",
            shard,
            (self.keys.writers(shard),),
            (generation, "1" if first else "0", reclaim_after_ms, hold, ENCODER.encode(list(writers))),
        )
        return int(raw)

    async def limit(self, tenant: str, limit_id: str, start: int) -> dict[str, str]:
        """Everything kept of one limit and period, for people and for verify."""
        raw = await self._command("HGETALL", self.keys.limit(tenant, limit_id, start))
        return {field.decode(): value.decode() for field, value in raw.items()}

    async def windows(self, tenant: str) -> dict[tuple[str, int, int], dict[str, int]]:
        """All windows of a tenant that Redis still has: (series, period, hour) -> writer -> cumulative, for verify."""
        found = {}
        for member in await self._command("ZRANGE", self.keys.windows(tenant), 0, -1):
            series, period, hour = member.decode().rsplit(":", 2)
            fields = await self._command("HGETALL", self.keys.window(tenant, series, int(period), int(hour)))
            values = {name.decode(): int(value) for name, value in fields.items() if name not in (b"v", b"t")}
            if values:
                found[series, int(period), int(hour)] = values
        return found

    async def mark_all_dirty(self, shard: int) -> int:
        """After Postgres went back in time: every window Redis has is to be sent again. Scans; rare by nature."""
        prefix = f"{self.keys.tag(shard)}window:"
        marked = 0
        batch: list[tuple[str, str]] = []
        try:
            server = await self._calls.servers.owner(self.keys.epoch(shard))
            async for raw in server.scan_iter(match=f"{prefix}*", count=1000):
                tenant, _, member = raw.decode().removeprefix(prefix).partition(":")
                batch.append((unescaped(tenant), member))
                if len(batch) == WINDOWS_RESENT_AT_ONCE:
                    marked += await self._resend(shard, batch)
                    batch = []
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"{type(error).__name__} during scan: {error}") from error
        return marked + (await self._resend(shard, batch) if batch else 0)

    async def _resend(self, shard: int, windows: Sequence[tuple[str, str]]) -> int:
        return int(await self._script("resend", shard, (self.keys.dirty(shard),), (ENCODER.encode(windows),)))

    # What these three return is awaited; a coroutine of their own would be one more step each way for every call.

    def _script(self, name: str, shard: int, keys: tuple[str, ...], arguments: tuple[Any, ...]) -> Awaitable[Any]:
        self._generations += 1
        context = ENCODER.encode((self.keys.tag(shard), self._clock.offset_ms, f"{self._identity}-{self._generations}"))
        whole = (self.keys.absent(shard),) if self._calls.servers.spread else ()
        return self._call(name, (self.keys.epoch(shard), *keys, *whole), (context, *arguments))

    def _call(self, name: str, keys: tuple[str, ...], arguments: tuple[Any, ...]) -> Awaitable[Any]:
        script = self._scripts[name]
        rest = (len(keys), *keys, *arguments)
        return self._calls.run(name, keys[0], ("EVALSHA", script.sha, *rest), ("EVAL", script.text, *rest))

    def _command(self, verb: str, key: str, *words: Any) -> Awaitable[Any]:
        return self._calls.run(verb.lower(), key, (verb, key, *words))

    def _refuse_while_open(self, key: str) -> None:
        """A request never serves as the probe: it would wait for nothing."""
        if self._calls.breaker(key).open:
            raise StoreUnavailable("Redis is away; the breaker is open")


def _understood(verb: str, decoder: msgspec.msgpack.Decoder[T], raw: Any) -> T:
    """What Redis answered; whoever asked says it again if that makes no sense."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise StoreRefused(f"Redis answered {verb} with what this version does not understand: {error}") from error


def pack(value: object) -> bytes:
    """Msgpack form of a value, as scripts read it."""
    return msgspec.msgpack.encode(value)
