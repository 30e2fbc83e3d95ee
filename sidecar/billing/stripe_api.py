"""The edge to Stripe: the official SDK's client, and its errors turned into ours.

Guarantees: every failure is StripeUnavailable (fate unknown), StripeBusy (no effect) or StripeRefused (no effect); the
            key appears in none of them. Nothing is retried here: who calls knows whether it may.
Source: Stripe API 2026-10-28.endive, https://docs.stripe.com/api; error types as in stripe-python 16.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import stripe
from stripe._base_address import BaseAddresses

from sidecar.errors import StripeBusy, StripeRefused, StripeUnavailable

TIMEOUT_S = 30
IDEMPOTENCY = "idempotency_error"  # the code given to a refusal that has none but its type
_SECRET = re.compile(r"\b((?:sk|rk|whsec)_(?:test_|live_)?)\w+")


class StripeApi:
    """One account at Stripe. ``v1`` and ``v2`` are the SDK's services; call their ``*_async`` inside ``errors()``."""

    def __init__(self, client: stripe.StripeClient, http: stripe.AIOHTTPClient) -> None:
        self.v1 = client.v1
        self.v2 = client.v2
        self.client = client
        self._http = http

    @classmethod
    def open(cls, key: str, url: str = "https://api.stripe.com", timeout_s: float = TIMEOUT_S) -> Self:
        """Make a client without connecting yet; ``url`` serves every kind of call, those of meter events too."""
        http = stripe.AIOHTTPClient(timeout=timeout_s)
        addresses: BaseAddresses = {"api": url, "meter_events": url, "files": url, "connect": url}
        if url == "https://api.stripe.com":
            addresses = {}
        return cls(stripe.StripeClient(key, base_addresses=addresses, http_client=http, max_network_retries=0), http)

    async def close(self) -> None:
        """Close idle connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]


@contextmanager
def errors() -> Iterator[None]:
    """Turn what the SDK raises into the three errors that callers know."""
    try:
        yield
    except stripe.RateLimitError as error:
        headers = error.headers or {}
        reason = next((value for name, value in headers.items() if name.lower() == "stripe-rate-limited-reason"), "")
        raise StripeBusy(f"Stripe asked to slow down ({reason or 'no reason given'})", reason) from error
    except (stripe.APIConnectionError, stripe.APIError) as error:
        status = error.http_status
        told = f"Stripe answered {status}" if status else "Stripe did not answer"
        raise StripeUnavailable(f"{told}: {_told(error)}", status=status or 0, replayed=_replayed(error)) from error
    except stripe.StripeError as error:
        raise StripeRefused(
            f"Stripe refused: {_told(error)}",
            status=error.http_status or 400,
            code=error.code or (IDEMPOTENCY if isinstance(error, stripe.IdempotencyError) else ""),
            param=str(getattr(error, "param", None) or ""),
            replayed=_replayed(error),
        ) from error


def _replayed(error: stripe.StripeError) -> bool:
    """Whether Stripe repeats what it answered to the same idempotency key before."""
    headers = error.headers or {}
    return any(name.lower() == "idempotent-replayed" and value == "true" for name, value in headers.items())


def _told(error: stripe.StripeError) -> str:
    """What the error says to people; a key that it repeats is left out."""
    return _SECRET.sub(r"\1...", error.user_message or error.code or type(error).__name__)
