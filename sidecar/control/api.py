"""The billing API on the control listener, first cut: tenants, keys, usage and the catalogue.

Guarantees: every path under /api needs an admin token, compared in constant time; an error is problem+json that says
            what to do; while Postgres is away the answer is 503 with Retry-After.
            What is changed is in the audit log with the token that asked, named by the beginning of its SHA-256.
Gives up:   anything between two tokens: whoever has one may do everything here.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware
from msgspec import Struct

from sidecar.catalogue.doubts import doubts
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control import accounts, billing, catalogues, invoices, webhooks
from sidecar.control.answers import ACTOR, body_of, json_answer, problem, refusal, tenant_of
from sidecar.control.billing import Desk
from sidecar.control.catalogues import TEXT_BYTES_MAX, Catalogues
from sidecar.control.report import usage_report
from sidecar.control.webhooks import Receiver
from sidecar.errors import CatalogueInvalid, JsonInvalid, SidecarError
from sidecar.ledger import keys, tenants
from sidecar.ledger.connection import Ledger

SHOWN_DIGITS = 8
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


def control_app(
    ledger: Ledger,
    admin_tokens: Sequence[str],
    clock: Clock,
    *,
    desk: Desk | None = None,
    receiver: Receiver | None = None,
) -> web.Application:
    """Build what the control listener serves; without a desk billing is off, without a receiver so are webhooks."""
    app = _Api(ledger, admin_tokens, clock).app
    app.add_routes(billing.routes(ledger, desk))
    app.add_routes(webhooks.routes(receiver))
    return app


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
                *invoices.routes(ledger, self._catalogues, clock),
            ]
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return json_answer({"status": "ok"})

    async def _show_tenant(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            return json_answer(await tenants.show(tx, tenant_of(request)))

    async def _put_tenant(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, PutTenant)
        async with self._ledger.transaction() as tx:
            accounts.known_plan(await self._catalogues.in_force(tx), wanted.plan)
            row = await tenants.put(
                tx,
                tenant_of(request),
                plan=wanted.plan,
                actor=request[ACTOR],
                parent=wanted.parent,
                anchor_s=wanted.anchor_s,
                shadow=wanted.shadow,
                status=wanted.status,
            )
        return json_answer(row)

    async def _create_key(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, CreateKey)
        async with self._ledger.transaction() as tx:
            made = await keys.create(tx, tenant_of(request), actor=request[ACTOR], name=wanted.name)
        return json_answer({"key": made.secret, "sha256": made.row.sha256, "tenant": made.row.tenant}, status=201)

    async def _usage(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            catalogue = await self._catalogues.in_force(tx)
            return json_answer(await usage_report(tx, catalogue, tenant_of(request), self._clock.wall_s()))

    async def _put_catalogue(self, request: web.Request) -> web.Response:
        try:
            text = (await request.read()).decode()
        except UnicodeDecodeError as error:
            raise CatalogueInvalid([f"catalogue:1: byte {error.start} is no UTF-8; send the file as UTF-8"]) from error
        async with self._ledger.transaction() as tx:
            version = await catalogues.apply(tx, text, "catalogue", actor=request[ACTOR])
        found = doubts(parse(text, "catalogue"))
        return json_answer({"revision": version.revision, "created_s": version.created_s, "doubtful": found})


def _authorized(admin_tokens: Sequence[str]) -> Middleware:
    tokens = [token.encode() for token in admin_tokens]
    names = [f"api:{sha256(token).hexdigest()[:SHOWN_DIGITS]}" for token in tokens]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/api/"):
            return await handler(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip().encode(errors="replace")
        # Every token is compared, so that the time taken tells nothing about which one was near.
        matches = [hmac.compare_digest(given, known) for known in tokens]
        if scheme.lower() != "bearer" or not any(matches):
            refused = problem(401, "no valid admin token", "send `Authorization: Bearer` with one of the admin tokens")
            refused.headers["www-authenticate"] = "Bearer"
            return refused
        request[ACTOR] = names[matches.index(True)]
        return await handler(request)

    return check


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what is raised into an answer; what nobody expected stays aiohttp's 500."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = problem(error.status, error.reason, f"{error.method} is not for this path; send one of {allowed}")
        refused.headers["allow"] = allowed  # RFC 9110, section 15.5.6
        return refused
    except web.HTTPException as error:
        return problem(error.status, error.reason, error.text or error.reason)
    except (msgspec.ValidationError, JsonInvalid) as error:
        return problem(400, "malformed body", f"{error}; send JSON with the documented fields")
    except CatalogueInvalid as error:
        return problem(422, "invalid", str(error), problems=error.problems)
    except SidecarError as error:
        return refusal(error, request.method)
