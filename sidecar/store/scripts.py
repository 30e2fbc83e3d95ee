"""The Lua scripts: loaded from their files, the shared prelude in front, called by their SHA-1."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files

NAMES = (
    "announce", "changes", "collect", "find_key", "lookup", "merge", "open", "publish", "resend", "retire", "settle",
    "sync",
)  # fmt: skip
# These two work on the stream of changes, which belongs to no shard.
ALONE = frozenset({"announce", "changes"})
LUA = files("sidecar.store") / "lua"
FUNCTION = re.compile(r"^(local function (\w+)\(.*?^end\n)", re.MULTILINE | re.DOTALL)
CONSTANT = re.compile(r"^local ([A-Z][A-Z_]*) = ([\w *()]+?)(?: --.*)?\n", re.MULTILINE)
NAME = re.compile(r"\b[A-Z][A-Z_]+\b")
WORD = re.compile(r"\w+")
COMMENT = re.compile(r"--.*")


class Script:
    """One script: its text and the SHA-1 under which Redis keeps it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


def prelude() -> str:
    """What scripts of a shard share."""
    return (LUA / "prelude.lua").read_text()


def assembled(shared: str, text: str) -> str:
    """A script with what it uses of the prelude in front, and constants in place of their names.

    Each call of a script makes all its functions anew, and looks for each local that they refer to.
    """
    pieces, last = _pieces(shared)
    kept, used = [f"{last}\n{text}"], _words(last + text)
    for between, function, name, words, more in pieces:
        if name in used:
            kept.append(function)
            used |= more
        kept.append(between)
        used |= words
    whole = "".join(reversed(kept))
    values: dict[str, str] = {}
    for name, value in CONSTANT.findall(whole):
        values[name] = f"({_folded(value, values)})"
    return _folded(CONSTANT.sub("", whole), values)


@lru_cache(1)
def _pieces(shared: str) -> tuple[list[tuple[str, str, str, set[str], set[str]]], str]:
    """From behind: what is before a function, the function, its name, the words of both; and the rest."""
    *split, last = FUNCTION.split(shared)
    pieces = []
    for at in range(len(split) - 3, -1, -3):
        between, function, name = split[at : at + 3]
        pieces.append((between, function, name, _words(between), _words(function)))
    return pieces, last


def _words(text: str) -> set[str]:
    return set(WORD.findall(COMMENT.sub("", text)))


def _folded(text: str, values: dict[str, str]) -> str:
    return NAME.sub(lambda found: values.get(found[0], found[0]), text)


def load() -> dict[str, Script]:
    """All scripts by name."""
    shared, scripts = prelude(), {}
    for name in NAMES:
        text = (LUA / f"{name}.lua").read_text()
        scripts[name] = Script(name, text if name in ALONE else assembled(shared, text))
    return scripts
