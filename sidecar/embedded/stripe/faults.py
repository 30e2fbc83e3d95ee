"""What shall fail, and how often.

Guarantees: the same seed fails the same calls of the same sequence.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

CALL_KINDS = (
    "rate_limited",
    "rate_limited_no_reason",
    "error_before",
    "error_after",
    "cut_before",
    "cut_after",
    "slow",
    "async_error",
)
WEBHOOK_KINDS = ("webhook_duplicate", "webhook_reorder", "webhook_delay", "webhook_never")


class Rule(Struct, forbid_unknown_fields=True):
    """One thing that fails. ``count`` 0 is without end; ``path`` is the event's type for webhooks."""

    kind: str
    method: str = "*"
    path: str = "*"
    share: float = 1.0
    count: int = 0
    seconds: float = 1.0
    seed: int = 0
    reason: str = "endpoint-rate"
    code: str = "archived_meter"
    times: int = 2

    def __post_init__(self) -> None:
        if self.kind not in CALL_KINDS + WEBHOOK_KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; use one of {', '.join(CALL_KINDS + WEBHOOK_KINDS)}")
        if not 0 <= self.share <= 1:
            raise ValueError("share must be from 0 to 1")


class Faults:
    """The rules in force, in the order in which they are asked."""

    def __init__(self) -> None:
        self._rules: list[tuple[Rule, Random, list[int]]] = []

    def add(self, wanted: Any) -> None:
        """Take one rule, a list of them, or ``{"rules": [...]}``; raises ValueError."""
        if isinstance(wanted, dict) and set(wanted) == {"rules"}:
            wanted = wanted["rules"]
        for rule in msgspec.convert(wanted if isinstance(wanted, list) else [wanted], list[Rule]):
            self._rules.append((rule, Random(rule.seed), [0]))

    def clear(self) -> None:
        self._rules.clear()

    def draw(self, method: str, path: str, kinds: tuple[str, ...] = CALL_KINDS) -> Rule | None:
        """The first rule that strikes this call."""
        for rule, random, hits in self._rules:
            if (
                rule.kind in kinds
                and (not rule.count or hits[0] < rule.count)
                and rule.method in ("*", method)
                and fnmatchcase(path, rule.path)
                and random.random() < rule.share
            ):
                hits[0] += 1
                return rule
        return None

    def told(self) -> list[dict[str, Any]]:
        return [{**msgspec.to_builtins(rule), "hits": hits[0]} for rule, _, hits in self._rules]
