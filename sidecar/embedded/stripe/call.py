"""One call of an endpoint, and the table of endpoints.

Guarantees: a path that is no endpoint of the stand-in is refused as the API refuses a path it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.fields import EXPAND, Fields
from sidecar.embedded.stripe.rendering import paths, render


class Call(Struct):
    """What a handler gets: parameters as they came, ids in the path, and who asks."""

    params: dict[str, Any]
    ids: dict[str, str] = {}
    idempotency_key: str = ""
    authorization: str = ""

    @property
    def id(self) -> str:
        return self.ids["id"]


Handler = Callable[[Account, Call], Any]
# The customer and meter of a call that must be alone, or None.
Alone = Callable[[Account, Call], tuple[str, str] | None]


class Route(Struct, frozen=True):
    """One endpoint."""

    method: str
    path: str
    handler: Handler
    # Meter event calls last a while, and are counted against their own rate.
    metered: bool = False
    alone: Alone | None = None
    # The stream takes the token of a session instead of a key.
    own_token: bool = False


class Routes:
    """Finds the endpoint of a method and a path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Route]] = []
        for route in routes:
            if "{" in route.path:
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
                self._patterns.append((route.method, re.compile(pattern), route))
            else:
                self._fixed[route.method, route.path] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        route = self._fixed.get((method, path))
        if route is not None:
            return route, {}
        for wanted, pattern, candidate in self._patterns:
            if wanted == method and (found := pattern.fullmatch(path)):
                return candidate, found.groupdict()
        raise Refused(
            f"Unrecognized request URL ({method}: {path}). The stand-in knows only what docs/stripe-standin.md lists.",
            status=404,
            executed=False,
        )


ONLY_EXPAND = Fields(EXPAND)


def retriever(kind: str) -> Handler:
    """The endpoint that shows one object."""

    def retrieve(account: Account, call: Call) -> Object:
        values = ONLY_EXPAND.read(call.params)
        return shown(account, account.get(kind, call.id, in_path=True), values)

    return retrieve


def shown(account: Account, item: Object, values: dict[str, Any]) -> Object:
    """An object as the answer of a call that may expand."""
    found: Object = render(account, item, paths(values.get("expand")))
    return found
