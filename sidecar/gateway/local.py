"""The local listener, for the application beside the sidecar: explain a request, see a tenant's limits.

Guarantees: nothing here spends anything. Bad bodies are refused with the field that is wrong.
Gives up:   speed: this is aiohttp, and no gateway waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from msgspec import Struct

from sidecar.enforcement.decision import Identity
from sidecar.gateway.headers import FAULT, HeaderIndex
from sidecar.gateway.identity import CONFLICT, Found

if TYPE_CHECKING:
    from sidecar.enforcement.enforcer import Enforcer

BODY_BYTES_MAX = 65_536


class Explain(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/explain: the request as the gateway would describe it, or a tenant by name."""

    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: dict[str, str] = {}
    tenant: str = ""


def local_app(enforcer: Enforcer) -> web.Application:
    """The application of port 9001."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)

    async def explain(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read(), type=Explain)
        except msgspec.DecodeError as error:
            return _problem(
                400, f"the body is not what is expected: {error}; send method, host, path and headers or tenant"
            )
        identity = Identity(body.tenant) if body.tenant else _identify(enforcer, body.headers)
        if identity is None:
            return _json({"allow": False, "status": 401, "reason": "identity_conflict"})
        route = enforcer.policy.routes.match(body.method.upper(), body.host, body.path)
        await enforcer.ensure(identity, route)
        return _json(enforcer.explain(identity, route))

    async def limits(request: web.Request) -> web.Response:
        tenant = request.match_info["tenant"]
        await enforcer.ensure(Identity(tenant))
        found = enforcer.limits(tenant)
        return _json(found) if found is not None else _problem(404, f"nobody knows the tenant {tenant!r}")

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
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _problem(status: int, detail: str) -> web.Response:
    body = {"type": "about:blank", "status": status, "detail": detail}
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/problem+json")
