"""How the control listener reads what it is asked and writes what it answers."""

from __future__ import annotations

from typing import Any, TypeVar

from aiohttp import web

from sidecar.control.report import ENCODER
from sidecar.errors import (
    BillingOff,
    Conflict,
    LedgerUnavailable,
    NotFound,
    SidecarError,
    StripeBusy,
    StripeRefused,
    StripeUnavailable,
)
from sidecar.json_text import decoded

TENANT_BYTES_MAX = 128
RETRY_AFTER_S = 2
SAFE = ("GET", "HEAD")
LOOK_FIRST = "look at GET .../subscription before you try again"
_REFUSALS: tuple[tuple[type[SidecarError], int, str], ...] = (
    (NotFound, 404, "not found"),
    (Conflict, 409, "conflict"),
    (LedgerUnavailable, 503, "Postgres is away"),
    (StripeUnavailable, 503, "Stripe is away"),
    (BillingOff, 501, "billing is off"),
)
# A refused card is the customer's affair, a refused key the operator's; the rest is about what was asked.
_REFUSED_BY_STRIPE = {401: 502, 402: 402, 403: 502, 404: 404, 409: 409}
# Who asks: which of the admin tokens, by the beginning of its SHA-256.
ACTOR = web.RequestKey("actor", str)
Body = TypeVar("Body")


async def body_of(request: web.Request, kind: type[Body]) -> Body:
    """The body as a structure, an empty one as an empty object; JsonInvalid for anything else."""
    return decoded(await request.read() or b"{}", kind)


def tenant_of(request: web.Request) -> str:
    """The tenant in the path; NotFound when it can be none."""
    tenant = request.match_info["tenant"]
    if not tenant.isprintable() or len(tenant.encode()) > TENANT_BYTES_MAX:
        raise NotFound(f"a tenant id has at most {TENANT_BYTES_MAX} bytes and no control characters")
    return tenant


def problem(status: int, title: str, detail: str, **more: Any) -> web.Response:
    """A problem as RFC 9457 has it."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return web.Response(body=ENCODER.encode(body), status=status, content_type="application/problem+json")


def refusal(error: SidecarError, method: str = "GET") -> web.Response:
    """An error of this program as a problem; what may pass by itself has a time to come back.

    What may have had an effect at Stripe has none: whoever comes back by itself would do it twice.
    """
    if method not in SAFE and isinstance(error, StripeUnavailable) and not isinstance(error, StripeBusy):
        return problem(503, "Stripe is away", f"{error}; it may have taken effect: {LOOK_FIRST}")
    if isinstance(error, StripeRefused):
        status = _REFUSED_BY_STRIPE.get(error.status, 422)
        return problem(status, "refused by Stripe", str(error), code=error.code, param=error.param)
    found = ((status, title) for kind, status, title in _REFUSALS if isinstance(error, kind))
    status, title = next(found, (500, "refused"))
    answer = problem(status, title, str(error))
    if error.transient:
        answer.headers["retry-after"] = str(RETRY_AFTER_S)
    return answer


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=ENCODER.encode(value), status=status, content_type="application/json")
