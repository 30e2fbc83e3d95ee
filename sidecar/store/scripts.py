"""The Lua scripts: loaded from their files, the shared prelude in front, called by their SHA-1."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files

NAMES = (
    "announce", "changes", "collect", "find_key", "lookup", "merge", "open", "publish", "resend", "retire", "settle",
    "sync",
)  # fmt: skip
# These two work on the stream of changes, which belongs to no shard.
ALONE = frozenset({"announce", "changes"})


class Script:
    """One script: its text and the SHA-1 under which Redis keeps it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


def load() -> dict[str, Script]:
    """All scripts by name."""
    folder = files("sidecar.store") / "lua"
    prelude = (folder / "prelude.lua").read_text()
    scripts = {}
    for name in NAMES:
        text = (folder / f"{name}.lua").read_text()
        scripts[name] = Script(name, text if name in ALONE else f"{prelude}\n{text}")
    return scripts
