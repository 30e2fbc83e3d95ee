"""The known name that a wrong one is nearest to, as errors suggest it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that asks for the nearest known name, whatever the case; empty when none is near."""
    names = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f', did you mean "{names[near[0]]}"?' if near else ""
