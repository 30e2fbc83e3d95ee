"""Redis' types as far as the scripts use them, and the state of a real Redis in the same form."""

from __future__ import annotations

from typing import Any

import msgspec

State = dict[str, Any]
# An expiry is compared with this slack: the real server's goes on counting while a test runs.
TTL_SLACK_MS = 60_000


class Keys:
    """Hashes, sorted sets, sets and strings. Times are the virtual ones of the test."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, str]] = {}
        self.ranked: dict[str, dict[str, int]] = {}
        self.sets: dict[str, set[str]] = {}
        self.strings: dict[str, str] = {}
        self.ttls: dict[str, tuple[int, int]] = {}
        self.now = 0

    def get(self, key: str, field: str) -> str | None:
        return self.hashes.get(key, {}).get(field)

    def number(self, key: str, field: str) -> int:
        return int(self.get(key, field) or 0)

    def put(self, key: str, **fields: object) -> None:
        self.hashes.setdefault(key, {}).update({name: str(value) for name, value in fields.items()})

    def drop(self, key: str, field: str) -> None:
        self.hashes.get(key, {}).pop(field, None)

    def grow(self, key: str, field: str, by: int) -> int:
        total = self.number(key, field) + by
        self.put(key, **{field: total})
        return total

    def rank(self, key: str, member: str, score: int) -> None:
        self.ranked.setdefault(key, {})[member] = score

    def lowest(self, key: str, most: int, up_to: int | None = None) -> list[str]:
        found = [(score, name.encode()) for name, score in self.ranked.get(key, {}).items()]
        return [name.decode() for score, name in sorted(found)[:most] if up_to is None or score <= up_to]

    def delete(self, key: str) -> None:
        for kind in (self.hashes, self.ranked, self.sets, self.strings, self.ttls):
            kind.pop(key, None)

    def expire(self, key: str, ttl_ms: int) -> None:
        if any(key in kind for kind in (self.hashes, self.ranked, self.sets, self.strings)):
            self.ttls[key] = (self.now, ttl_ms)

    def persist(self, key: str) -> None:
        self.ttls.pop(key, None)

    def expired(self) -> list[str]:
        """Forget what has expired by now; returns the keys."""
        gone = [key for key, (since, ttl) in self.ttls.items() if since + ttl <= self.now]
        for key in gone:
            self.delete(key)
        return gone

    def state(self) -> State:
        """Everything, in the form of ``state_of``; what became empty goes, as in Redis."""
        kinds: tuple[dict[str, Any], ...] = (self.hashes, self.ranked, self.sets, self.strings)
        for kind in kinds:
            for key in [key for key, value in kind.items() if not value]:
                self.delete(key)
        found: State = {key: value for kind in kinds for key, value in kind.items()}
        return {key: (value, self.ttls[key][1] if key in self.ttls else None) for key, value in found.items()}


DUMP = """
local found = {}
for index, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind = redis.call('TYPE', key).ok
  local value
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  else value = redis.call('GET', key) end
  found[index] = { key, kind, value, redis.call('PTTL', key) }
end
return found
"""


def state_of(dump: list[Any]) -> State:
    """The answer of DUMP: key -> (value, ttl in ms or None)."""
    state: State = {}
    for raw_key, kind, raw, ttl in dump:
        value: Any
        if kind == b"hash":
            value = {name.decode(): _text(name, item) for name, item in zip(raw[::2], raw[1::2], strict=True)}
        elif kind == b"zset":
            value = {name.decode(): int(score) for name, score in zip(raw[::2], raw[1::2], strict=True)}
        elif kind == b"set":
            value = {item.decode() for item in raw}
        else:
            value = raw.decode()
        state[raw_key.decode()] = (value, ttl if ttl >= 0 else None)
    return state


def differences(expected: State, found: State) -> list[str]:
    """What two states disagree about, in words."""
    said = [f"{key}: expected {expected[key]}, not there" for key in expected.keys() - found.keys()]
    said += [f"{key}: unexpected {found[key]}" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        (value, ttl), (real, left) = expected[key], found[key]
        if value != real:
            said.append(f"{key}: expected {value}, found {real}")
        if (ttl is None) != (left is None) or (ttl is not None and not ttl - TTL_SLACK_MS <= left <= ttl):
            said.append(f"{key}: expected to live {ttl} ms, found {left}")
    return said


def _text(name: bytes, item: bytes) -> str:
    return str(msgspec.msgpack.decode(item)) if name == b"lim" else item.decode()
