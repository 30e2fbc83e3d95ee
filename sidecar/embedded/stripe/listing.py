"""Lists in pages, newest first.

Source: https://docs.stripe.com/api/pagination
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import bad_parameter, missing_object
from sidecar.embedded.stripe.rendering import paths, render

LIMIT = 10


def listing(data: list[Any], url: str, *, has_more: bool = False) -> Object:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def page(account: Account, objects: Iterable[Object], values: dict[str, Any], url: str) -> Object:
    """The page that was asked for, of objects in the order in which they were made."""
    newest_first = list(objects)[::-1]
    return cut(account, newest_first, values, url)


def cut(account: Account, ordered: list[Object], values: dict[str, Any], url: str) -> Object:
    """The page that was asked for, of objects in the order of the list."""
    limit = values.get("limit", LIMIT)
    after, before = values.get("starting_after"), values.get("ending_before")
    if after is not None and before is not None:
        raise bad_parameter(
            "You can only use one of starting_after and ending_before.", "starting_after", "parameters_exclusive"
        )
    if after is not None:
        ordered = ordered[_place(account, ordered, after, "starting_after") + 1 :]
    elif before is not None:
        ordered = ordered[: _place(account, ordered, before, "ending_before")]
        shown, more = ordered[-limit:], len(ordered) > limit
        return _shown(account, shown, values, url, more=more)
    return _shown(account, ordered[:limit], values, url, more=len(ordered) > limit)


def created_within(item: Object, values: dict[str, Any]) -> bool:
    """Whether an object's creation lies in the range that was asked for."""
    bounds: dict[str, int] = values.get("created", {})
    created: int = item["created"]
    return (
        created > bounds.get("gt", -1)
        and created >= bounds.get("gte", 0)
        and ("lt" not in bounds or created < bounds["lt"])
        and ("lte" not in bounds or created <= bounds["lte"])
    )


def _shown(account: Account, shown: list[Object], values: dict[str, Any], url: str, *, more: bool) -> Object:
    tree = paths(values.get("expand"))
    expand = tree.get("data", {})
    return listing([render(account, item, expand) for item in shown], url, has_more=more)


def _place(account: Account, ordered: list[Object], identity: str, param: str) -> int:
    for number, item in enumerate(ordered):
        if item["id"] == identity:
            return number
    found = account.find(identity)
    raise missing_object(found["object"] if found else "object", identity, param)
