"""Runs the program's own Lua scripts in this process, by the interpreter that Redis embeds (Lua 5.1).

Guarantees: what a script may call is what Redis offers; each script is compiled once, its text decides its SHA-1.
Gives up:   Redis' sandbox, and atomicity by any other means than that nothing else runs meanwhile.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from lupa import lua51

from sidecar.store.scripts import Script, load

# Packing in Lua spares a conversion of every nested table; unpacking in Python spares a parser.
_LIBRARY = rb"""
local char, floor, concat, format = string.char, math.floor, table.concat, string.format
local function number(value, out)
  local n = #out + 1
  if value ~= floor(value) then error('a script packs a fraction: ' .. value) end
  if value >= 0 and value < 128 then out[n] = char(value)
  elseif value >= 0 and value < 4294967296 then
    out[n] = char(206, floor(value / 16777216), floor(value / 65536) % 256, floor(value / 256) % 256, value % 256)
  else
    local prefix = 207
    if value < 0 then prefix = 211 end
    local high = floor(value / 4294967296)
    local low = value - high * 4294967296
    if high < 0 then high = high + 4294967296 end
    out[n] = char(prefix, floor(high / 16777216) % 256, floor(high / 65536) % 256, floor(high / 256) % 256, high % 256,
      floor(low / 16777216), floor(low / 65536) % 256, floor(low / 256) % 256, low % 256)
  end
end
local function pack(value, out)
  local kind = type(value)
  if kind == 'number' then number(value, out)
  elseif kind == 'string' then
    local size = #value
    if size < 32 then out[#out + 1] = char(160 + size)
    else
      out[#out + 1] = char(219, floor(size / 16777216), floor(size / 65536) % 256, floor(size / 256) % 256, size % 256)
    end
    out[#out + 1] = value
  elseif kind == 'boolean' then out[#out + 1] = value and '\195' or '\194'
  elseif kind == 'table' then
    local size = #value
    out[#out + 1] = char(221, floor(size / 16777216), floor(size / 65536) % 256, floor(size / 256) % 256, size % 256)
    for index = 1, size do pack(value[index], out) end
  else error('a script packs a ' .. kind) end
end
redis = { call = ... }
cmsgpack = { unpack = select(2, ...), pack = function(value)
  local out = {}
  pack(value, out)
  return concat(out)
end }
return function(script, keys, argv)
  KEYS, ARGV = keys, argv
  return script()
end
"""


class Server(Protocol):
    """What redis.call reaches."""

    def command(self, name: bytes, arguments: tuple[Any, ...]) -> Any: ...


class ScriptEngine:
    """One Lua interpreter, shared by all simulated servers: scripts keep nothing between two calls."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
        self._table = self._lua.table_from
        self._server: Server | None = None
        self._run = self._lua.execute(_LIBRARY, self._call, self._unpack)
        self._compiled: dict[str, Any] = {}

    def run(self, server: Server, script: Script, keys: list[bytes], arguments: list[bytes]) -> Any:
        """Run a script on a server; returns what Redis would answer."""
        compiled = self._compiled.get(script.sha)
        if compiled is None:
            compiled = self._compiled[script.sha] = self._lua.compile(script.text.encode())
        self._server = server
        return self._answer(self._run(compiled, self._table(keys), self._table(arguments)))

    def _call(self, name: bytes, *arguments: Any) -> Any:
        assert self._server is not None
        found = self._server.command(name, arguments)
        if found is None:
            return False
        if type(found) is not list:
            return found
        if None in found:
            found = [False if item is None else item for item in found]
        # Only a stream's entries are lists in a list.
        return self._table(found, recursive=True) if found and type(found[0]) is list else self._table(found)

    def _unpack(self, raw: bytes) -> Any:
        value = _texts(msgspec.msgpack.decode(raw))
        return self._table(value, recursive=True) if isinstance(value, list) else value

    def _answer(self, value: Any) -> Any:
        if isinstance(value, float):
            return int(value)
        if value is None or value is False:
            return None
        if isinstance(value, bytes | int):
            return value
        return [self._answer(value[index]) for index in range(1, len(value) + 1)]


def _texts(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [_texts(item) for item in value]
    return value.encode() if kind is str else value


SCRIPTS: dict[str, Script] = load()
ENGINE = ScriptEngine()
