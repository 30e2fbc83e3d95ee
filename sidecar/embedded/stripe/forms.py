"""Form-encoded parameters with brackets, as v1 takes them.

Guarantees: `a[b][0][c]=v` becomes nested dictionaries whose leaves are texts; an array is a dictionary of numbers,
            read as a list by whoever expects one.
Gives up:   telling "1" from 1, as the real encoding does.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from sidecar.embedded.stripe.errors import bad_parameter

DEPTH_MAX = 8
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")

Form = dict[str, Any]


def pairs(text: str) -> list[tuple[str, str]]:
    """The parameters in the order in which they came."""
    return parse_qsl(text, keep_blank_values=True)


def parse(text: str) -> Form:
    """Read a body or a query."""
    form: Form = {}
    if not text:
        return form
    for name, value in pairs(text):
        if "[" in name:
            _nest(form, name, value)
        else:
            form[name] = value
    return form


def _nest(form: Form, name: str, value: str) -> None:
    found = _NAME.fullmatch(name)
    if found is None:
        raise bad_parameter(f"Invalid parameter name: {name}", name)
    keys = [found[1], *found[2][1:-1].split("][")]
    if len(keys) > DEPTH_MAX:
        raise bad_parameter(f"Invalid parameter name: {name}", name)
    inside = form
    for key in keys[:-1]:
        below = inside.setdefault(key or str(len(inside)), {})
        if not isinstance(below, dict):
            raise bad_parameter(f"Invalid object: {below}", keys[0])
        inside = below
    inside[keys[-1] or str(len(inside))] = value
