"""A Redis in memory: the commands that the program and its scripts use, with expiry by a clock that may jump.

Guarantees: a command's answer is that of redis-server, as tests/simulation/test_redis.py compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import NoScriptError

from sidecar.store.scripts import Script
from tests.simulation import lua


def texts(values: Iterable[Any]) -> list[bytes]:
    """Arguments as Redis sees them."""
    return [
        value if (kind := type(value)) is bytes else value.encode() if kind is str else b"%d" % value
        for value in values
    ]


class MemoryRedis:
    """One data set on one server. ``heard`` is told of every lease that a script takes back, for the oracle."""

    def __init__(self, clock: Callable[[], int], replid: str) -> None:
        self.clock = clock
        self.replid = replid
        self.up = True
        self.calls = 0
        self.heard: Callable[[MemoryRedis, bytes, bytes, int], None] | None = None
        self.after: Callable[[MemoryRedis, str, tuple[Any, ...], Any], None] = lambda *_about: None
        self._data = lua.ENGINE.fresh(replid.encode())
        self._loaded: dict[str, Script] = {}

    # What happens to servers.

    def wipe(self) -> None:
        self._data = lua.ENGINE.fresh(self.replid.encode())

    def copy_data(self) -> Any:
        """The data set as a replica or a dump would have it now."""
        return lua.ENGINE.copied(self._data, b"")

    def load_data(self, data: Any) -> None:
        self._data = lua.ENGINE.copied(data, self.replid.encode())
        self._loaded.clear()

    # Calls.

    def execute(self, words: tuple[Any, ...]) -> Any:
        """A command as it comes from a client."""
        self.calls += 1
        name = words[0]
        if name in {"EVALSHA", "EVAL"}:
            return self._evaluate(name, words)
        return self.command(name.encode(), words[1:])

    def command(self, name: bytes, arguments: tuple[Any, ...]) -> Any:
        return lua.ENGINE.command(self._data, self.clock(), name, texts(arguments))

    def keys(self, prefix: bytes) -> list[bytes]:
        return list(self.command(b"KEYS", (prefix + b"*",)))

    def hashes(self, prefix: str) -> dict[bytes, dict[bytes, bytes]]:
        """Every hash whose key begins so, by key, in the order of the keys."""
        return lua.ENGINE.hashes(self._data, self.clock(), prefix.encode())

    def _evaluate(self, name: str, words: tuple[Any, ...]) -> Any:
        if name == "EVALSHA":
            script = self._loaded.get(words[1])
            if script is None:
                raise NoScriptError("NOSCRIPT No matching script")
        else:
            script = next(script for script in lua.SCRIPTS.values() if script.text == words[1])
            self._loaded[script.sha] = script
        after_keys = 3 + int(words[2])
        answer = lua.ENGINE.run(self._data, self.clock(), script, words[2], texts(words[3:]), self._hears)
        self.after(self, script.name, words[after_keys:], answer)
        return answer

    def _hears(self, key: bytes, field: bytes, units: int) -> None:
        if self.heard is not None:
            self.heard(self, key, field, units)
