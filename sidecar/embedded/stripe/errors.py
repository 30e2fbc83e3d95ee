"""Refusals of the API in the shape of the real ones.

Guarantees: v1 and v2 bodies both have type, code, param and message where there are any.
Gives up:   doc_url and request_log_url, which would lead nowhere.
Source: https://docs.stripe.com/api/errors
"""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
IDEMPOTENCY = "idempotency_error"
CARD = "card_error"
API = "api_error"
RATE_LIMIT = "rate_limit"


class Refused(Exception):
    """A call that the API refuses; ``executed`` is false while no endpoint began, so that no answer is remembered."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = INVALID,  # noqa: A002 - the API calls it so
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        executed: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.executed = executed

    @property
    def body(self) -> dict[str, Any]:
        error = {"type": self.type, "code": self.code, "param": self.param, "message": str(self)}
        return {"error": {name: value for name, value in error.items() if value is not None}}


def bad_parameter(message: str, param: str, code: str | None = None) -> Refused:
    """A parameter that fails validation, before anything began."""
    return Refused(message, param=param, code=code, executed=False)


def missing_object(kind: str, identity: str, param: str = "id", *, in_path: bool = False) -> Refused:
    """There is no such object: 404 when the path names it, 400 when a parameter does."""
    name = kind.rpartition(".")[2]
    return Refused(
        f"No such {name}: '{identity}'", status=404 if in_path else 400, code="resource_missing", param=param
    )


def rate_limited(reason: str | None, message: str = "") -> Refused:
    """429, with the reason in the header unless a fault leaves it out."""
    return Refused(
        message or "Request rate limit exceeded. Learn more about rate limits in our documentation.",
        status=429,
        code=RATE_LIMIT,
        headers={"Stripe-Rate-Limited-Reason": reason} if reason else {},
        executed=False,
    )
