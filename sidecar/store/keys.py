"""Names of everything kept in Redis (docs/protocol.md).

All keys of a tenant carry the hash tag of its shard, so that one script touches one slot of a Redis Cluster.
"""

from __future__ import annotations

from urllib.parse import unquote
from zlib import crc32


def escaped(tenant: str) -> str:
    """A tenant as part of a key: without colons, or tenant "a:b" could name a key of tenant "a" (lua/prelude.lua)."""
    return tenant.replace("%", "%25").replace(":", "%3A")


def unescaped(name: str) -> str:
    """Reverse of ``escaped``."""
    return unquote(name)


class Keyspace:
    """Builds key names for one installation: a prefix and a fixed number of shards."""

    __slots__ = ("_tags", "catalogue", "changes", "prefix", "shards")

    def __init__(self, prefix: str = "sc", shards: int = 16) -> None:
        self.prefix = prefix
        self.shards = shards
        self._tags = tuple(f"{prefix}:{{s{shard:03d}}}:" for shard in range(shards))
        self.changes = f"{prefix}:changes"
        self.catalogue = f"{prefix}:catalogue"

    def shard_of(self, name: str) -> int:
        """Shard of a tenant, or of an API key by its SHA-256: ``crc32(name) mod shards``."""
        return crc32(name.encode()) % self.shards

    def tag(self, shard: int) -> str:
        """Common beginning of all keys of a shard, hash tag included."""
        return self._tags[shard]

    def epoch(self, shard: int) -> str:
        return self._tags[shard] + "epoch"

    def reclaimed(self, shard: int) -> str:
        return self._tags[shard] + "reclaimed"

    def dirty(self, shard: int) -> str:
        return self._tags[shard] + "dirty"

    def called(self, shard: int) -> str:
        return self._tags[shard] + "called"

    def writers(self, shard: int) -> str:
        return self._tags[shard] + "writers"

    def writer(self, shard: int, writer: str) -> str:
        return f"{self._tags[shard]}writer:{writer}"

    def held(self, shard: int, writer: str) -> str:
        return f"{self._tags[shard]}held:{writer}"

    def absent(self, shard: int) -> str:
        """A key that never exists; a script that names it is refused while the slot is moved (store/cluster.py)."""
        return self._tags[shard] + "absent"

    def tenant(self, tenant: str) -> str:
        return f"{self._tags[self.shard_of(tenant)]}tenant:{escaped(tenant)}"

    def windows(self, tenant: str) -> str:
        return f"{self._tags[self.shard_of(tenant)]}windows:{escaped(tenant)}"

    def window(self, tenant: str, series: str, period: int, hour: int) -> str:
        return f"{self._tags[self.shard_of(tenant)]}window:{escaped(tenant)}:{series}:{period}:{hour}"

    def limit(self, tenant: str, limit_id: str, start: int) -> str:
        return f"{self._tags[self.shard_of(tenant)]}limit:{escaped(tenant)}:{limit_id}:{start}"

    def api_key(self, sha256: str) -> str:
        return f"{self._tags[self.shard_of(sha256)]}key:{sha256}"
