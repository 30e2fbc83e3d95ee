"""Overrides of a tenant: what a JSON object changes in the limits and features of its plan.

``{"limits": {"api_calls": {"included": 5000}}, "features": {"sso": true}, "shadow": true}``. A limit may be
overridden short, by its included amount alone; ``null`` is unlimited. Amounts are decimals in whole units, written as
text where they have decimal places.

Guarantees: every wrong key is named at once, with what would be right; what does not fit is never half applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from sidecar.catalogue.amount import AmountInvalid, format_amount, parse_amount
from sidecar.catalogue.model import GRACE_S, Catalogue, Limit, Plan
from sidecar.nearest import nearest

OVERRIDE_KEYS = ("limits", "features", "shadow")
LIMIT_OVERRIDE_KEYS = ("included", "cap", "ceiling", "buffer", "grace_s", "on_outage", "shadow")
_CHOICES: dict[str, tuple[str, ...]] = {"cap": ("hard", "soft"), "on_outage": ("closed", "open")}
_BOUNDS = {"buffer": 1_000, "grace_s": 366 * 86_400}


def overridden(catalogue: Catalogue, limit: Limit, change: object) -> Limit:
    """The limit with one override applied; parts of it that do not fit are left out."""
    scale = catalogue.metrics[limit.metric].scale
    fitting = {key: part for key, part in _parts(change).items() if _part_problem(key, part, scale) is None}
    changes: dict[str, Any] = {}
    for key, part in fitting.items():
        if key in ("included", "ceiling"):
            changes[key] = None if part is None else parse_amount(part, scale)
        else:
            changes["buffer_percent" if key == "buffer" else key] = part
    if changes.get("cap", limit.cap) != limit.cap and "on_outage" not in changes:
        # The outage policy follows the cap, as it does in the file, unless one was chosen with care.
        changes["on_outage"] = "closed" if changes["cap"] == "hard" else "open"
    if "included" in changes and "ceiling" not in changes and limit.ceiling is not None:
        # A ceiling is room beyond the included amount; it moves along, so that a raise is never swallowed by it.
        room = limit.ceiling - (limit.included or 0)
        changes["ceiling"] = None if changes["included"] is None else changes["included"] + room
    after = msgspec.structs.replace(limit, **changes)
    newly_soft = after.cap == "soft" and after.included is not None and (limit.cap == "hard" or limit.included is None)
    if newly_soft and not (after.overage or after.credits or "grace_s" in changes):
        return msgspec.structs.replace(after, grace_s=GRACE_S)
    return after


def override_problems(catalogue: Catalogue, plan: Plan, overrides: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the overrides of a tenant on this plan; each problem names its key."""
    for key in overrides:
        if key not in OVERRIDE_KEYS:
            yield f"{key}: unknown key{nearest(key, OVERRIDE_KEYS)}; there are {', '.join(OVERRIDE_KEYS)}"
    if not isinstance(overrides.get("shadow", False), bool):
        yield "shadow: is not true or false; write one of them"
    for key in ("limits", "features"):
        if not isinstance(overrides.get(key, {}), dict):
            yield f"{key}: is no object; write names with their values"
    for name, value in changes_of(overrides, "features").items():
        if not feature_fits(name, value):
            yield f"features.{name}: {value!r} is no feature value; a text, a whole number, true or false"
    limits = {limit.name: limit for limit in plan.limits}
    for name, change in changes_of(overrides, "limits").items():
        if name in limits:
            yield from _limit_problems(catalogue, limits[name], change)
        else:
            there = f"there are {', '.join(limits)}"
            yield f'limits.{name}: plan "{plan.name}" has no such limit{nearest(name, limits)}; {there}'


def changes_of(overrides: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty when there is none."""
    changes = overrides.get(key)
    return changes if isinstance(changes, dict) else {}


def _limit_problems(catalogue: Catalogue, limit: Limit, change: object) -> Iterator[str]:
    scale = catalogue.metrics[limit.metric].scale
    for key, part in _parts(change).items():
        problem = _part_problem(key, part, scale)
        if problem:
            yield f"limits.{limit.name}.{key}: {problem}"
    after = overridden(catalogue, limit, change)
    if after.ceiling is not None and after.included is not None and after.ceiling < after.included:
        least = format_amount(after.included, scale)
        yield f"limits.{limit.name}.ceiling: is below the included amount; at least {least}"


def _parts(change: object) -> dict[str, Any]:
    return change if isinstance(change, dict) else {"included": change}


def _part_problem(key: str, part: object, scale: int) -> str | None:
    if key not in LIMIT_OVERRIDE_KEYS:
        return f"unknown key{nearest(key, LIMIT_OVERRIDE_KEYS)}; there are {', '.join(LIMIT_OVERRIDE_KEYS)}"
    if key in ("included", "ceiling"):
        if part is None:
            return None
        try:
            parse_amount(cast("str", part), scale)  # it refuses what is no number
        except AmountInvalid as error:
            return str(error)
        return None
    if key == "shadow":
        return None if isinstance(part, bool) else "is not true or false; write one of them"
    if key in _CHOICES:
        return None if part in _CHOICES[key] else f"{part!r} is wrong; one of {', '.join(_CHOICES[key])}"
    whole = isinstance(part, int) and not isinstance(part, bool)
    if whole and 0 <= part <= _BOUNDS[key]:  # type: ignore[operator]  # an int by now
        return None
    return f"{part!r} is wrong; a whole number from 0 to {_BOUNDS[key]}"


def feature_fits(name: object, value: object) -> bool:
    if not isinstance(name, str) or not name.isprintable() or not name.isascii():
        return False
    if isinstance(value, str):
        return value.isprintable() and value.isascii()
    return isinstance(value, int | bool)
