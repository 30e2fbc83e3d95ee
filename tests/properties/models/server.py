"""The real scripts on a real Redis, with a clock and a replication id that the test sets."""

from __future__ import annotations

from typing import Any

import msgspec
import redis

from sidecar.store.keys import Keyspace
from sidecar.store.scripts import ALONE, NAMES, assembled, load, prelude
from tests.properties.models.keys import DUMP, State, state_of

TIME = "redis.call('TIME')"
REPLICATION = "redis.call('INFO', 'replication')"

MONTHS = """
local starts = {}
for index, second in ipairs(cmsgpack.unpack(ARGV[2])) do starts[index] = month_start(second) end
return starts
"""


class ScriptServer:
    """Calls scripts of the one shard of a keyspace. What stands in for server time and replication is one hash."""

    def __init__(self, url: str, prefix: str) -> None:
        self.space = Keyspace(prefix, 1)
        self.tag = self.space.tag(0)
        self._redis: redis.Redis = redis.Redis.from_url(url, protocol=2)
        self._controls = f"{prefix}-controls"
        self._scripts = {name: self._redis.register_script(self._text(name)) for name in NAMES}
        self._months = self._redis.register_script(assembled(prelude(), MONTHS))
        self._dump = self._redis.register_script(DUMP)

    def _text(self, name: str) -> str:
        text = load()[name].text
        for call, fields in ((TIME, "'HMGET', '{}', 's', 'us'"), (REPLICATION, "'HGET', '{}', 'replication'")):
            assert text.count(call) == 1 or name in ALONE
            text = text.replace(call, f"redis.call({fields.format(self._controls)})")
        return text

    def set_clock(self, real_ms: int, replid: str) -> None:
        fields = {"s": real_ms // 1000, "us": real_ms % 1000 * 1000, "replication": f"master_replid:{replid}\r\n"}
        self._redis.hset(self._controls, mapping={name: str(value) for name, value in fields.items()})

    def call(self, script: str, offset: int, fresh: str, keys: list[str], *arguments: object) -> Any:
        """The raw answer; arguments that are lists go as msgpack, as the client sends them."""
        context = msgspec.msgpack.encode((self.tag, offset, fresh))
        packed = [_packed(argument) for argument in arguments]
        return self._scripts[script](keys=[self.space.epoch(0), *keys], args=[context, *packed])

    def month_starts(self, seconds: list[int]) -> list[int]:
        """The start of the month of each second, by the scripts' own calendar."""
        context = msgspec.msgpack.encode((self.tag, 0, ""))
        return list(self._months(keys=[self.space.epoch(0)], args=[context, msgspec.msgpack.encode(seconds)]))

    def alone(self, script: str, *arguments: object) -> Any:
        """A script that belongs to no shard."""
        return self._scripts[script](keys=[self.space.changes], args=[_packed(argument) for argument in arguments])

    def delete(self, *keys: str) -> None:
        if keys:
            self._redis.delete(*keys)

    def put(self, key: str, value: str) -> None:
        self._redis.set(key, value)

    def set_ttl(self, key: str, ttl_ms: int) -> None:
        self._redis.pexpire(key, ttl_ms)

    def copy_changes(self) -> bytes | None:
        """The stream as a replica or a dump has it now."""
        copy: bytes | None = self._redis.dump(self.space.changes)
        return copy

    def load_changes(self, copy: bytes | None) -> None:
        self.delete(self.space.changes)
        if copy is not None:
            self._redis.restore(self.space.changes, 0, copy)

    def trim_changes(self, kept: int) -> None:
        self._redis.xtrim(self.space.changes, maxlen=kept, approximate=False)

    def state(self) -> State:
        return state_of(self._dump(args=[self.tag]))

    def close(self) -> None:
        """Remove everything of this prefix."""
        keys = [*self._redis.scan_iter(match=f"{self.space.prefix}*", count=1000)]
        self.delete(*keys)
        self._redis.close()


def unpacked(answer: bytes) -> Any:
    """A script's msgpack answer."""
    return msgspec.msgpack.decode(answer)


def _packed(argument: object) -> Any:
    return msgspec.msgpack.encode(argument) if isinstance(argument, list) else argument
