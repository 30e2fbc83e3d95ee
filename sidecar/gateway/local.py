"""The local listener, for the application beside the sidecar: explain a request, see a tenant's limits.

Guarantees: nothing here spends anything. Bad bodies are refused with the field that is wrong. Amounts are exact
            decimals in whole units, as JSON numbers.
Gives up:   speed: this is aiohttp, and no gateway waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from sidecar.enforcement.decision import Decision, Identity
from sidecar.errors import JsonInvalid
from sidecar.gateway.headers import FAULT, HeaderIndex
from sidecar.gateway.identity import CONFLICT, ID_BYTES_MAX, Found, acceptable
from sidecar.gateway.problem import plain
from sidecar.json_text import decoded
from sidecar.problems import problems

if TYPE_CHECKING:
    from sidecar.enforcement.enforcer import Enforcer

BODY_BYTES_MAX = 65_536
ENCODER = msgspec.json.Encoder(decimal_format="number")


class Explain(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/explain: the request as the gateway would describe it, or who asks, by name.

    ``key`` is the SHA-256 of an API key in hex, as `sidecar key list --json` shows it, so that no body holds a secret.
    Alone it finds its tenant; beside ``tenant`` it only chooses the counters of scope key.
    """

    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: dict[str, str] = {}
    tenant: str = ""
    key: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    user: str = ""


def local_app(enforcer: Enforcer) -> web.Application:
    """The application of port 9001."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[problems])

    async def explain(request: web.Request) -> web.Response:
        try:
            body = decoded(await request.read(), Explain)
        except JsonInvalid as error:
            return _problem(
                400,
                f"the body is not what is expected: {error}; send method, host, path, and headers or tenant, key, user",
            )
        named = body.tenant or body.key or body.user
        if named and body.headers:
            return _problem(400, "both headers and tenant, key or user say who asks; send one of the two")
        if not all(acceptable(text) for text in (body.tenant, body.user) if text):
            return _problem(400, f"a tenant or user has at most {ID_BYTES_MAX} bytes, and only what prints")
        identity = (
            Identity(body.tenant or None, body.key or None, body.user) if named else _identify(enforcer, body.headers)
        )
        route = enforcer.policy.routes.match(body.method.upper(), body.host, body.path)
        if identity is None:
            return _json({"allow": False, "status": 401, "reason": "identity_conflict", "route": route.name})
        return _json(await enforcer.explain(identity, route))

    async def limits(request: web.Request) -> web.Response:
        tenant = request.match_info["tenant"]
        if not acceptable(tenant):
            return _problem(404, f"a tenant has at most {ID_BYTES_MAX} bytes, and only what prints")
        found = await enforcer.limits(tenant)
        if not isinstance(found, Decision):
            return _json(found)
        if found.status == 503:  # noqa: PLR2004 - HTTP
            away = _problem(503, "Redis cannot say who this tenant is right now; try again")
            away.headers["retry-after"] = str(found.retry_after_s)
            return away
        return _problem(404, f"nobody knows the tenant {tenant!r}")

    app.router.add_post("/v1/explain", explain)
    app.router.add_get("/v1/limits/{tenant}", limits)
    return app


def _identify(enforcer: Enforcer, headers: dict[str, str]) -> Identity | None:
    """Read the identity as the decision listener does; None for a conflict."""
    index = HeaderIndex(enforcer.policy.catalogue)
    found: Found = {}
    for spelling, value in headers.items():
        name = index.canonical(spelling.encode("latin-1", "replace"), found)
        if name is None:
            continue
        if name in found:
            index.repeated(name, found)
        found[name] = value.encode("utf-8")
    identity = index.identity.identify(found)
    return None if identity is CONFLICT or FAULT in found else identity


def _json(value: object) -> web.Response:
    return web.Response(body=ENCODER.encode(value), content_type="application/json")


def _problem(status: int, detail: str) -> web.Response:
    return web.Response(status=status, text=plain(status, detail), content_type="application/problem+json")
