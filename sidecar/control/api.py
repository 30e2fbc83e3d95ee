"""The billing API on the control listener, first cut: tenants, keys, usage and the catalogue.

Guarantees: every path under /api needs an admin token, compared in constant time; an error is problem+json that says
            what to do; while Postgres is away the answer is 503 with Retry-After.
Gives up:   anything between two tokens: whoever has one may do everything here.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware
from msgspec import Struct

from sidecar.clock import Clock
from sidecar.control import accounts, catalogues
from sidecar.control.catalogues import TEXT_BYTES_MAX, Catalogues
from sidecar.control.report import ENCODER, usage_report
from sidecar.errors import CatalogueInvalid, Conflict, LedgerUnavailable, NotFound, SidecarError
from sidecar.ledger import keys, tenants
from sidecar.ledger.connection import Ledger

RETRY_AFTER_S = 2
TENANT_BYTES_MAX = 128
ACTOR = "api"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body")


class PutTenant(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of PUT /api/v1/tenants/{id}; what is left out stays as it is."""

    plan: str
    parent: str | None = None
    anchor_s: int | None = None
    shadow: bool | None = None
    status: Literal["active", "trialing", "past_due", "unpaid", "cancelled", "paused", "suspended"] | None = None


class CreateKey(Struct, forbid_unknown_fields=True):
    """Body of POST /api/v1/tenants/{id}/keys."""

    name: str = ""


def control_app(ledger: Ledger, admin_tokens: Sequence[str], clock: Clock) -> web.Application:
    """Build what the control listener serves."""
    return _Api(ledger, admin_tokens, clock).app


class _Api:
    """Handlers over one ledger."""

    def __init__(self, ledger: Ledger, admin_tokens: Sequence[str], clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._catalogues = Catalogues()
        self.app = web.Application(client_max_size=TEXT_BYTES_MAX, middlewares=[_errors, _authorized(admin_tokens)])
        self.app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/api/v1/tenants/{tenant}", self._show_tenant),
                web.put("/api/v1/tenants/{tenant}", self._put_tenant),
                web.post("/api/v1/tenants/{tenant}/keys", self._create_key),
                web.get("/api/v1/tenants/{tenant}/usage", self._usage),
                web.put("/api/v1/catalogue", self._put_catalogue),
            ]
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _show_tenant(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            return _json(await tenants.show(tx, _tenant(request)))

    async def _put_tenant(self, request: web.Request) -> web.Response:
        wanted = await _body(request, PutTenant)
        async with self._ledger.transaction() as tx:
            accounts.known_plan(await self._catalogues.in_force(tx), wanted.plan)
            row = await tenants.put(
                tx,
                _tenant(request),
                plan=wanted.plan,
                actor=ACTOR,
                parent=wanted.parent,
                anchor_s=wanted.anchor_s,
                shadow=wanted.shadow,
                status=wanted.status,
            )
        return _json(row)

    async def _create_key(self, request: web.Request) -> web.Response:
        wanted = await _body(request, CreateKey)
        async with self._ledger.transaction() as tx:
            made = await keys.create(tx, _tenant(request), actor=ACTOR, name=wanted.name)
        return _json({"key": made.secret, "sha256": made.row.sha256, "tenant": made.row.tenant}, status=201)

    async def _usage(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            catalogue = await self._catalogues.in_force(tx)
            return _json(await usage_report(tx, catalogue, _tenant(request), self._clock.wall_s()))

    async def _put_catalogue(self, request: web.Request) -> web.Response:
        try:
            text = (await request.read()).decode()
        except UnicodeDecodeError as error:
            raise CatalogueInvalid([f"catalogue:1: byte {error.start} is no UTF-8; send the file as UTF-8"]) from error
        async with self._ledger.transaction() as tx:
            version = await catalogues.apply(tx, text, "catalogue", actor=ACTOR)
        return _json({"revision": version.revision, "created_s": version.created_s})


def _authorized(admin_tokens: Sequence[str]) -> Middleware:
    tokens = [token.encode() for token in admin_tokens]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/api/"):
            return await handler(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip().encode(errors="replace")
        # Every token is compared, so that the time taken tells nothing about which one was near.
        matches = [hmac.compare_digest(given, known) for known in tokens]
        if scheme.lower() != "bearer" or not any(matches):
            refused = _problem(401, "no valid admin token", "send `Authorization: Bearer` with one of the admin tokens")
            refused.headers["www-authenticate"] = "Bearer"
            return refused
        return await handler(request)

    return check


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what is raised into an answer; what nobody expected stays aiohttp's 500."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _problem(error.status, error.reason, error.text or error.reason)
    except msgspec.MsgspecError as error:
        return _problem(400, "malformed body", f"{error}; send JSON with the documented fields")
    except CatalogueInvalid as error:
        return _problem(422, "invalid", str(error), problems=error.problems)
    except NotFound as error:
        return _problem(404, "not found", str(error))
    except Conflict as error:
        return _problem(409, "conflict", str(error))
    except LedgerUnavailable as error:
        away = _problem(503, "Postgres is away", str(error))
        away.headers["retry-after"] = str(RETRY_AFTER_S)
        return away
    except SidecarError as error:
        return _problem(500, "refused", str(error))


async def _body(request: web.Request, kind: type[Body]) -> Body:
    return msgspec.json.decode(await request.read() or b"{}", type=kind)


def _tenant(request: web.Request) -> str:
    tenant = request.match_info["tenant"]
    if not tenant.isprintable() or len(tenant.encode()) > TENANT_BYTES_MAX:
        raise NotFound(f"a tenant id has at most {TENANT_BYTES_MAX} bytes and no control characters")
    return tenant


def _problem(status: int, title: str, detail: str, **more: Any) -> web.Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return web.Response(body=ENCODER.encode(body), status=status, content_type="application/problem+json")


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=ENCODER.encode(value), status=status, content_type="application/json")
