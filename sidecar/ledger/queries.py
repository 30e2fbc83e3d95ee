"""The named queries of queries.sql, read once.

A block starts with ``-- name: x``, the next comment line is its sentence, and it ends where the next one starts.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def queries() -> dict[str, str]:
    text = files("sidecar.ledger").joinpath("queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    names = parts[::2]
    if len(set(names)) != len(names):
        raise ValueError("queries.sql names a query twice")
    return {name: body.strip() for name, body in zip(names, parts[1::2], strict=True)}


@cache
def query(name: str) -> str:
    return queries()[name]
