"""A Redis in memory: the commands that the program and its scripts use, with expiry by a clock that may jump.

Guarantees: a command's answer is that of redis-server, as tests/simulation/test_redis.py compares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from tests.simulation import lua


def text(value: Any) -> bytes:
    """An argument as Redis sees it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, float):
        return b"%d" % int(value) if value == int(value) else repr(value).encode()
    return b"%d" % value


def _bound(raw: bytes) -> tuple[float, bool]:
    exclusive = raw.startswith(b"(")
    return float(raw[1:] if exclusive else raw), exclusive


def _score(value: float) -> bytes:
    return b"%d" % int(value) if value == int(value) else repr(value).encode()


class MemoryRedis:
    """One data set on one server. ``heard`` is told of every write by a script, for the oracle."""

    def __init__(self, clock: Callable[[], int], replid: str) -> None:
        self.clock = clock
        self.replid = replid
        self.up = True
        self.calls = 0
        self.heard: Callable[[MemoryRedis, bytes, tuple[Any, ...]], None] | None = None
        self.after: Callable[[MemoryRedis, str, tuple[Any, ...], Any], None] = lambda *_about: None
        self._data: dict[bytes, Any] = {}
        self._expires: dict[bytes, int] = {}
        self._loaded: set[str] = set()
        self._commands: dict[bytes, Callable[..., Any]] = {
            name[4:].upper().encode(): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    # What happens to servers.

    def wipe(self) -> None:
        self._data, self._expires = {}, {}

    def copy_data(self) -> tuple[dict[bytes, Any], dict[bytes, int]]:
        """The data set as a replica or a dump would have it now."""
        return copy.deepcopy(self._data), dict(self._expires)

    def load_data(self, data: tuple[dict[bytes, Any], dict[bytes, int]]) -> None:
        self._data, self._expires = copy.deepcopy(data[0]), dict(data[1])
        self._loaded.clear()

    # Calls.

    def execute(self, words: tuple[Any, ...]) -> Any:
        """A command as it comes from a client."""
        self.calls += 1
        name = str(words[0])
        if name in ("EVALSHA", "EVAL"):
            return self._evaluate(name, words)
        return self.command(name.encode(), words[1:])

    def command(self, name: bytes, arguments: tuple[Any, ...]) -> Any:
        call = self._commands.get(name)
        if call is None:
            raise ResponseError(f"the simulated Redis has no {name.decode()}")
        found = call(*[one if type(one) is bytes else text(one) for one in arguments])
        if self.heard is not None and name in (b"HINCRBY", b"HDEL"):
            self.heard(self, name, arguments)
        return found

    def keys(self, prefix: bytes) -> list[bytes]:
        return [key for key in list(self._data) if key.startswith(prefix) and self._find(key) is not None]

    def _evaluate(self, name: str, words: tuple[Any, ...]) -> Any:
        scripts = lua.SCRIPTS.values()
        if name == "EVALSHA":
            script = next((script for script in scripts if script.sha == words[1]), None)
            if script is None or script.sha not in self._loaded:
                raise NoScriptError("NOSCRIPT No matching script")
        else:
            script = next(script for script in scripts if script.text == words[1])
            self._loaded.add(script.sha)
        count = int(words[2])
        keys, arguments = words[3 : 3 + count], words[3 + count :]
        answer = lua.ENGINE.run(self, script, list(map(text, keys)), list(map(text, arguments)))
        self.after(self, script.name, arguments, answer)
        return answer

    def _find(self, key: bytes) -> Any:
        expires = self._expires.get(key)
        if expires is not None and expires <= self.clock():
            del self._expires[key], self._data[key]
            return None
        return self._data.get(key)

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        found = self._find(key)
        if found is None:
            found = self._data[key] = {}
        return found  # type: ignore[no-any-return]

    def _dropped(self, key: bytes) -> None:
        self._data.pop(key, None)
        self._expires.pop(key, None)

    # Commands, in the order of Redis' documentation.

    def _do_del(self, *keys: bytes) -> int:
        found = sum(self._find(key) is not None for key in keys)
        for key in keys:
            self._dropped(key)
        return found

    def _do_keys(self, pattern: bytes) -> list[bytes]:
        return self.keys(pattern.removesuffix(b"*"))

    def _do_exists(self, key: bytes) -> int:
        return int(self._find(key) is not None)

    def _do_pexpire(self, key: bytes, ms: bytes) -> int:
        if self._find(key) is None:
            return 0
        self._expires[key] = self.clock() + int(ms)
        self._find(key)
        return 1

    def _do_pttl(self, key: bytes) -> int:
        if self._find(key) is None:
            return -2
        expires = self._expires.get(key)
        return -1 if expires is None else expires - self.clock()

    def _do_persist(self, key: bytes) -> int:
        return int(self._find(key) is not None and self._expires.pop(key, None) is not None)

    def _do_get(self, key: bytes) -> bytes | None:
        return self._find(key)  # type: ignore[no-any-return]

    def _do_set(self, key: bytes, value: bytes) -> bytes:
        self._dropped(key)
        self._data[key] = value
        return b"OK"

    def _do_hset(self, key: bytes, *pairs: bytes) -> int:
        fields = self._hash(key)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(fields) - before

    def _do_hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        fields = self._hash(key)
        if field in fields:
            return 0
        fields[field] = value
        return 1

    def _do_hget(self, key: bytes, field: bytes) -> bytes | None:
        fields = self._find(key)
        return None if fields is None else fields.get(field)

    def _do_hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        fields = self._find(key) or {}
        return [fields.get(name) for name in names]

    def _do_hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._find(key) or {}).items() for part in pair]

    def _do_hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self._find(key) or {}))

    def _do_hincrby(self, key: bytes, field: bytes, units: bytes) -> int:
        fields = self._hash(key)
        value = int(fields.get(field, b"0")) + int(units)
        fields[field] = b"%d" % value
        return value

    def _do_hdel(self, key: bytes, *names: bytes) -> int:
        fields = self._find(key)
        if fields is None:
            return 0
        found = sum(fields.pop(name, None) is not None for name in names)
        if not fields:
            self._dropped(key)
        return found

    def _do_hlen(self, key: bytes) -> int:
        return len(self._find(key) or ())

    def _do_smembers(self, key: bytes) -> list[bytes]:
        return list(self._find(key) or ())

    def _do_sismember(self, key: bytes, member: bytes) -> int:
        return int(member in (self._find(key) or ()))

    def _do_sadd(self, key: bytes, *members: bytes) -> int:
        found = self._find(key)
        if found is None:
            found = self._data[key] = {}
        before = len(found)
        found.update(dict.fromkeys(members))
        return len(found) - before

    def _do_srem(self, key: bytes, *members: bytes) -> int:
        return self._remove(key, members)

    def _do_scard(self, key: bytes) -> int:
        return len(self._find(key) or ())

    def _do_spop(self, key: bytes, count: bytes) -> list[bytes]:
        popped = list(self._find(key) or ())[: int(count)]
        self._remove(key, popped)
        return popped

    def _remove(self, key: bytes, members: Iterable[bytes]) -> int:
        found = self._find(key)
        if found is None:
            return 0
        missing = object()
        removed = sum(found.pop(member, missing) is not missing for member in members)
        if not found:
            self._dropped(key)
        return removed

    def _do_zadd(self, key: bytes, *words: bytes) -> int:
        options = []
        while words[0] in (b"NX", b"XX", b"GT", b"CH"):
            options.append(words[0])
            words = words[1:]
        found = self._find(key)
        if found is None:
            if b"XX" in options:
                return 0
            found = self._data[key] = {}
        added = 0
        for score, member in zip(map(float, words[::2]), words[1::2], strict=True):
            known = found.get(member)
            if known is None:
                if b"XX" not in options:
                    found[member] = score
                    added += 1
            elif b"NX" not in options and not (b"GT" in options and score <= known):
                found[member] = score
        return added

    def _do_zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = (self._find(key) or {}).get(member)
        return None if score is None else _score(score)

    def _do_zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(self._within(key, low, high))

    def _do_zcard(self, key: bytes) -> int:
        return len(self._find(key) or ())

    def _sorted(self, key: bytes) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in (self._find(key) or {}).items())

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        found = self._sorted(key)
        stop = int(last) + 1
        found = found[int(first) : stop or None]
        if b"WITHSCORES" in options:
            return [part for score, member in found for part in (member, _score(score))]
        return [member for _, member in found]

    def _within(self, key: bytes, low: bytes, high: bytes) -> list[bytes]:
        (least, above), (most, below) = _bound(low), _bound(high)
        return [
            member
            for score, member in self._sorted(key)
            if (score > least or (score == least and not above)) and (score < most or (score == most and not below))
        ]

    def _do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> list[bytes]:
        found = self._within(key, low, high)
        if options:
            first, most = int(options[1]), int(options[2])
            return found[first : first + most]
        return found

    def _do_zrem(self, key: bytes, *members: bytes) -> int:
        return self._remove(key, members)

    def _do_zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> int:
        return self._remove(key, self._within(key, low, high))

    def _do_xadd(self, key: bytes, *words: bytes) -> bytes:
        at = words.index(b"*")
        entries = self._find(key)
        if entries is None:
            entries = self._data[key] = []
        last = entries[-1][0] if entries else (0, 0)
        now = self.clock()
        identity = (now, 0) if now > last[0] else (last[0], last[1] + 1)
        entries.append((identity, list(words[at + 1 :])))
        del entries[: -int(words[words.index(b"MAXLEN") + 2])]
        return b"%d-%d" % identity

    def _do_xrevrange(self, key: bytes, high: bytes, low: bytes, *options: bytes) -> list[Any]:
        assert (high, low) == (b"+", b"-")
        entries = (self._find(key) or [])[::-1][: int(options[1])]
        return [[b"%d-%d" % identity, fields] for identity, fields in entries]

    def _do_xrange(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> list[Any]:
        assert low.startswith(b"(")
        assert high == b"+"
        ms, _, number = low[1:].partition(b"-")
        after = (int(ms), int(number))
        entries = [entry for entry in self._find(key) or [] if entry[0] > after][: int(options[1])]
        return [[b"%d-%d" % identity, fields] for identity, fields in entries]

    def _do_time(self) -> list[bytes]:
        now = self.clock()
        return [b"%d" % (now // 1000), b"%d" % (now % 1000 * 1000)]

    def _do_info(self, section: bytes) -> bytes:
        return b"# Replication\r\nrole:master\r\nmaster_replid:" + self.replid.encode() + b"\r\n"
