"""Objects as the API shows them: expanded where asked, and without what shows only when expanded.

Source: https://docs.stripe.com/api/expanding_objects
"""

from __future__ import annotations

from typing import Any

from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import bad_parameter

# What is left out unless it is asked for.
INCLUDABLE = {"price": {"tiers", "currency_options"}}
# References that always show the object itself.
INLINE = {("subscription_item", "price"): "price"}
DEPTH_MAX = 4

# Where each path of `expand` leads.
Paths = dict[str, "Paths"]


def paths(expand: list[str] | None) -> Paths:
    """`["data.customer", "items"]` as a tree."""
    tree: Paths = {}
    for path in expand or ():
        steps = path.split(".")
        if len(steps) > DEPTH_MAX + 1:
            raise bad_parameter(f"You cannot expand more than {DEPTH_MAX} levels of a property.", "expand")
        inside = tree
        for step in steps:
            inside = inside.setdefault(step, {})
    return tree


def render(account: Account, value: Any, expand: Paths | None = None) -> Any:
    """A copy without hidden properties, expanded along the paths."""
    expand = expand or {}
    if isinstance(value, list):
        return [render(account, item, expand) for item in value]
    if not isinstance(value, dict):
        return value
    # The data of an event has an object under this name, not a word.
    kind = value["object"] if isinstance(value.get("object"), str) else ""
    for name in expand:
        if name not in value:
            raise bad_parameter(
                f"This property cannot be expanded ({name}). You may want to try expanding something else.", "expand"
            )
    hidden = INCLUDABLE.get(kind, ())
    found: Object = {}
    for name, inside in value.items():
        if name.startswith("_") or (name in hidden and name not in expand):
            continue
        below = expand.get(name)
        if isinstance(inside, str) and (below is not None or (kind, name) in INLINE):
            target = account.find(inside)
            found[name] = inside if target is None else render(account, target, below)
        else:
            found[name] = render(account, inside, below)
    return found
