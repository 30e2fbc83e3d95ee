"""The HTTP side: keys, versions, faults, rates, idempotency, and then the endpoint.

Guarantees: an endpoint runs in one piece; what its answer says has happened, and nothing of it when it is refused.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from sidecar.embedded.stripe import errors, forms
from sidecar.embedded.stripe.account import API_VERSION, Account
from sidecar.embedded.stripe.call import Call, Route
from sidecar.embedded.stripe.controls import Controls
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.faults import Faults, Rule
from sidecar.embedded.stripe.idempotency import Idempotency
from sidecar.embedded.stripe.limits import Limits
from sidecar.embedded.stripe.routes import ROUTES

BODY_BYTES_MAX = 1_000_000
LIVE = ("sk_live_", "rk_live_")
JSON = "application/json"
REFUSED, FAILED = 400, 500
RETRIABLE = (409, 429)

log = logging.getLogger(__name__)


class Asked(Struct):
    """One request, read."""

    method: str
    path: str
    version: str
    route: Route
    call: Call
    # What must be equal for the same idempotency key.
    fingerprint: str
    request_id: str


class App:
    """Answers the requests of one account."""

    def __init__(
        self, account: Account, keys: set[str], faults: Faults, idempotency: Idempotency, controls: Controls
    ) -> None:
        if any(key.startswith(LIVE) for key in keys):
            raise ValueError("the stand-in takes no live key; make up one that begins with sk_test_")
        self._account = account
        self._keys = keys
        self._faults = faults
        self._idempotency = idempotency
        self._controls = controls
        self._limits = Limits()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/_"):
            return await self._controls.handle(request)
        request_id = "req_" + secrets.token_hex(7)
        headers = {"Request-Id": request_id, "Stripe-Version": API_VERSION}
        try:
            asked = await self._read(request, request_id)
            if asked.call.idempotency_key:
                headers["Idempotency-Key"] = asked.call.idempotency_key
            status, body = await self._answer(request, asked, headers)
        except Refused as refused:
            headers.update(refused.headers)
            status, body = refused.status, msgspec.json.encode(refused.body)
        except Exception:
            # A fault of the stand-in itself must not look like one that was asked for.
            log.exception("the stand-in failed")
            status, body = 501, b'{"error":{"type":"api_error","message":"the stand-in itself failed; see its log"}}'
        headers["Stripe-Should-Retry"] = "true" if status in RETRIABLE or status >= FAILED else "false"
        return web.Response(status=status, body=body, headers=headers, content_type=JSON)

    async def _read(self, request: web.BaseRequest, request_id: str) -> Asked:
        method, path = request.method, request.path
        version = "v2" if path.startswith("/v2/") else "v1"
        route, ids = ROUTES.find(method, path)
        authorization = self._authorized(request, own_token=route.own_token)
        self._speaks(request, version)
        params: dict[str, Any] = {}
        if method == "POST":
            text = (await request.read()).decode()
            if text:
                params = _body(text, request.content_type, version)
        else:
            text = request.query_string
            params = forms.parse(text)
        return Asked(
            method=method,
            path=path,
            version=version,
            route=route,
            call=Call(params, ids, request.headers.get("Idempotency-Key", ""), authorization),
            fingerprint=f"{method} {path} {text}",
            request_id=request_id,
        )

    def _authorized(self, request: web.BaseRequest, *, own_token: bool) -> str:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given).decode().partition(":")[0]
            except ValueError:
                given = ""
        if not given:
            raise Refused(
                "You did not provide an API key. You need to provide your API key in the Authorization header, using "
                "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
                status=401,
                executed=False,
            )
        if own_token:
            return given
        if given.startswith(LIVE):
            raise Refused("This is a stand-in: never send it a live key.", status=401, executed=False)
        if given not in self._keys:
            raise Refused(f"Invalid API Key provided: {given[:8]}********", status=401, executed=False)
        for header in ("Stripe-Account", "Stripe-Context"):
            if header in request.headers:
                raise Refused(f"The stand-in has one account; leave {header} out.", status=403, executed=False)
        return given

    def _speaks(self, request: web.BaseRequest, version: str) -> None:
        wanted = request.headers.get("Stripe-Version")
        if wanted is None and version == "v2":
            raise Refused("The Stripe-Version header is required.", code="missing_version", executed=False)
        if wanted not in (None, API_VERSION):
            raise Refused(
                f"Invalid Stripe API version: {wanted}. The stand-in speaks {API_VERSION} only.", executed=False
            )

    async def _answer(self, request: web.BaseRequest, asked: Asked, headers: dict[str, str]) -> tuple[int, bytes]:
        fault = self._faults.draw(asked.method, asked.path)
        if fault is not None:
            await _before(fault, request)
        self._limits.count(self._account.options, self._account.clock.monotonic_ms(), metered=asked.route.metered)
        self._account.catch_up()
        who = asked.route.alone(self._account, asked.call) if asked.route.alone else None
        if who is not None:
            self._limits.enter(who)
        try:
            status, body = self._once(asked, fault, headers)
            if asked.route.metered and self._account.options.meter_call_ms:
                await asyncio.sleep(self._account.options.meter_call_ms / 1000)
        finally:
            if who is not None:
                self._limits.leave(who)
        if fault is not None and fault.kind == "cut_after":
            _cut(request)
        return status, body

    def _once(self, asked: Asked, fault: Rule | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Run the endpoint, or repeat what it answered before."""
        key = asked.call.idempotency_key if asked.method == "POST" else ""
        if key:
            known = self._idempotency.begin(key, asked.fingerprint, asked.version, self._account.now, asked.request_id)
            if known is not None:
                headers["Idempotent-Replayed"] = "true"
                headers["Original-Request"] = known.request_id
                return known.status, known.body
        keep = False
        try:
            status, body = self._run(asked, fault)
            keep = True
        except Refused as refused:
            status, body = refused.status, msgspec.json.encode(refused.body)
            headers.update(refused.headers)
            keep = refused.executed
        finally:
            if key and not keep:
                self._idempotency.forget(key)
        if fault is not None and fault.kind == "error_after":
            status, body = 500, _failed()
        if key and keep:
            if asked.version == "v2" and status >= REFUSED:
                self._idempotency.forget(key)
            else:
                self._idempotency.finish(key, status, body)
        return status, body

    def _run(self, asked: Asked, fault: Rule | None) -> tuple[int, bytes]:
        account = self._account
        account.request = {"id": asked.request_id, "idempotency_key": asked.call.idempotency_key or None}
        try:
            if fault is not None and fault.kind == "async_error":
                asked.call.ids["async_error"] = fault.code
            return 200, msgspec.json.encode(asked.route.handler(account, asked.call))
        finally:
            account.request = None


def _body(text: str, content_type: str, version: str) -> dict[str, Any]:
    if version == "v1":
        if content_type != "application/x-www-form-urlencoded":
            raise Refused(
                "Invalid request (check that your POST content type is application/x-www-form-urlencoded).",
                executed=False,
            )
        return forms.parse(text)
    if content_type != JSON:
        raise Refused("Invalid request (check that your POST content type is application/json).", executed=False)
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Refused(f"Invalid JSON: {error}", code="invalid_json", executed=False) from error
    if not isinstance(found, dict):
        raise Refused("The body must be an object.", code="invalid_json", executed=False)
    return found


async def _before(fault: Rule, request: web.BaseRequest) -> None:
    """What a fault does while nothing has happened yet."""
    if fault.kind in ("rate_limited", "rate_limited_no_reason"):
        raise errors.rate_limited(fault.reason if fault.kind == "rate_limited" else None)
    if fault.kind == "error_before":
        raise Refused("An unknown error occurred", status=500, type=errors.API, executed=False)
    if fault.kind == "cut_before":
        _cut(request)
        raise Refused("cut", status=500, type=errors.API, executed=False)
    if fault.kind == "slow":
        await asyncio.sleep(fault.seconds)


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _failed() -> bytes:
    return msgspec.json.encode(Refused("An unknown error occurred", status=500, type=errors.API).body)
