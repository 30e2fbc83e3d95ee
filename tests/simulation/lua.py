"""Runs the program's own Lua scripts in this process, by an interpreter of the language that Redis embeds (Lua 5.1).

It is LuaJIT's, which takes half the time of the one in Redis; its compiler is off, scripts are too short-lived for it.
tests/simulation/test_redis.py holds every answer equal to redis-server's.

The data sets that they work on are in the interpreter, too (redis.lua): a script calls Redis some twenty times, and
each of them would be converted twice on its way through Python.

Guarantees: what a script may call is what Redis offers; each script is compiled once, its text decides its SHA-1.
Gives up:   Redis' sandbox, and atomicity by any other means than that nothing else runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lupa import luajit21

from sidecar.store.scripts import Script, load

_HERE = Path(__file__).parent


class ScriptEngine:
    """One Lua interpreter, shared by all simulated servers: scripts keep nothing between two calls."""

    def __init__(self) -> None:
        self._lua = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=False)
        # Of little that lives, garbage is collected in one go: what is in use stays in the processor's caches.
        self._lua.execute(b"jit.off() collectgarbage('setpause', 1000) collectgarbage('setstepmul', 10000)")
        self._lua.execute((_HERE / "msgpack.lua").read_bytes())
        functions = self._lua.execute((_HERE / "redis.lua").read_bytes(), self._heard)
        self.fresh, self.copied, self.forget, self._command, self._run, self._hashes = functions
        self._compiled: dict[str, Any] = {}
        self._hears: Callable[[bytes, bytes, int], None] | None = None

    def run(
        self,
        data: Any,
        now_ms: int,
        script: Script,
        keys: int,
        words: list[bytes],
        hears: Callable[[bytes, bytes, int], None] | None,
    ) -> Any:
        """Run a script on a data set; returns what Redis would answer. ``hears`` is told of leases taken back.

        Of ``words`` the first ``keys`` are keys, the others arguments.
        """
        compiled = self._compiled.get(script.sha)
        if compiled is None:
            compiled = self._compiled[script.sha] = self._lua.compile(script.text.encode())
        self._hears = hears
        return _answer(self._run(data, now_ms, compiled, keys, *words))

    def command(self, data: Any, now_ms: int, name: bytes, arguments: list[bytes]) -> Any:
        return _answer(self._command(data, now_ms, name, *arguments))

    def hashes(self, data: Any, now_ms: int, prefix: bytes) -> dict[bytes, dict[bytes, bytes]]:
        """Every hash whose key begins so, by key, in the order of the keys."""
        words, found, at = _answer(self._hashes(data, now_ms, prefix)), {}, 0
        while at < len(words):
            key, first = words[at], at + 2
            at = first + words[at + 1]
            found[key] = dict(zip(words[first:at:2], words[first + 1 : at : 2], strict=True))
        return found

    def _heard(self, key: bytes | None, field: bytes | None, units: float) -> None:
        if self._hears is not None and key is not None and field is not None:
            self._hears(key, field, int(units))


def _answer(given: Any) -> Any:
    """What ``given`` in redis.lua made of an answer: its size and its values, or -1 and a value, or -2 and a table."""
    if type(given) is int:
        return []
    size = given[0]
    if size >= 0:
        return [
            value if type(value) is bytes else None if value is False else _value(value)  # most are one or the other
            for value in given[1:]
        ]
    return _value(given[1])


def _value(value: Any) -> Any:
    kind = type(value)
    if kind is bytes or kind is int:
        return value
    if kind is float:
        return int(value)
    if value is None or value is False:
        return None
    return [_value(value[index]) for index in range(1, len(value) + 1)]


SCRIPTS: dict[str, Script] = load()
ENGINE = ScriptEngine()
