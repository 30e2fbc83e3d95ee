"""The named queries of sql/, one file a noun, read once.

A block starts with ``-- name: x``, the next comment line is its sentence, and it ends where the next one starts. Times
go in and out as whole unix seconds, windows as unix seconds // 3600.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def queries() -> dict[str, str]:
    """Every query by its name; a name that is given twice is a ValueError."""
    found: dict[str, str] = {}
    for file in sorted(files("sidecar.ledger").joinpath("sql").iterdir(), key=lambda file: file.name):
        parts = _NAME.split(file.read_text(encoding="utf-8"))[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ValueError(f"{file.name} names {name} again")
            found[name] = body.strip()
    return found


@cache
def query(name: str) -> str:
    return queries()[name]
