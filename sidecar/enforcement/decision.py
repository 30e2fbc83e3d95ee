"""What the gateway asks and what the enforcer answers: values, never exceptions."""

from __future__ import annotations

from msgspec import Struct

REASONS = (
    "allowed",
    "shadow",
    "identity_missing",
    "identity_conflict",
    "tenant_unknown",
    "key_unknown",
    "payment_required",
    "feature_missing",
    "limit_reached",
    "limit_contended",
    "cost_too_large",
    "grace_over",
    "store_unavailable",
)


class Identity(Struct, frozen=True, gc=False):
    """Who asks: a tenant id set by the gateway, or the SHA-256 (hex) of an API key; both None is anonymous."""

    tenant: str | None = None
    key: str | None = None
    user: str = ""


class LimitView(Struct, frozen=True, gc=False):
    """The numbers behind a decision for one limit, in base units and seconds; ``quota`` None is unlimited.

    ``cost`` is what the request wanted, where that alone is more than the quota.
    """

    name: str
    quota: int | None
    used: int
    remaining: int
    window_s: int
    reset_s: int
    scale: int = 0
    cost: int = 0


class Decision(Struct, frozen=True):
    """Allow or deny one request.

    ``status`` is the real HTTP status (200 when allowed); ``reason`` one of REASONS; ``quota_status`` the value of
    x-quota-status; ``limit`` the tightest limit, or the violated one; ``violated`` the names of violated limits;
    ``features`` name/value pairs for the upstream; ``retry_after_s`` 0 when there is nothing to wait for.
    """

    allow: bool
    status: int
    reason: str
    quota_status: str = "ok"
    tenant: str = ""
    plan: str = ""
    features: tuple[tuple[str, str], ...] = ()
    limit: LimitView | None = None
    violated: tuple[str, ...] = ()
    retry_after_s: int = 0
    upgrade_url: str = ""
