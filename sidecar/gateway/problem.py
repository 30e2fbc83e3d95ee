"""The body of a denial: problem details (RFC 9457) with the numbers a client needs to go on.

Members: type, title, status, detail; ``reason`` (enforcement.decision.REASONS); ``violated-policies`` (names of
limits, as in RateLimit-Policy); ``limit`` and ``used`` as exact decimals and ``reset`` (UTC) of the violated limit;
``upgrade-url``; ``request-id``.

Guarantees: one line of visible ASCII, so that it can also travel in a header; at most a few kilobytes.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec
from msgspec import Raw, Struct

from sidecar.catalogue.amount import format_amount
from sidecar.enforcement.decision import Decision, LimitView

TYPES = {
    429: "https://iana.org/assignments/http-problem-types#quota-exceeded",
    503: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
}
DETAILS = {
    "identity_missing": "The request names no tenant. Send an API key.",
    "identity_conflict": "The request names its tenant more than once, or in a form that cannot be trusted.",
    "tenant_unknown": "This tenant is unknown.",
    "key_unknown": "This API key is unknown or was revoked.",
    "payment_required": "The subscription does not allow requests until it is paid or renewed.",
    "feature_missing": "The plan does not include this feature.",
    "limit_reached": "The limit is used up.",
    "limit_contended": "What is left of the limit is in use elsewhere right now; try again.",
    "cost_too_large": "The request costs more than the whole limit.",
    "grace_over": "The limit was exceeded and its grace is over.",
    "store_unavailable": "The limit cannot be checked right now; try again.",
}
NAME_CHARS_MAX = 128
URL_CHARS_MAX = 1_024
VIOLATED_MAX = 8
_LATEST_S = 253_402_300_799  # the last second of the year 9999; lifetime limits reset beyond it: never
_BEYOND_ASCII = re.compile(r"[^ -~]")


class _Problem(Struct, omit_defaults=True, rename="kebab"):
    type: str
    title: str
    status: int
    detail: str
    reason: str = ""
    violated_policies: tuple[str, ...] = ()
    limit: Raw | None = None
    used: Raw | None = None
    reset: str = ""
    upgrade_url: str = ""
    request_id: str = ""


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Denied"


def plain(status: int, detail: str) -> str:
    """A problem without numbers."""
    return _encoded(_Problem("about:blank", phrase(status), status, detail))


def body(decision: Decision, request_id: str, now_s: int) -> str:
    """The problem of a denial; ``now_s`` (unix s) is when it was decided."""
    status = decision.status
    titles = {429: "Quota exceeded", 503: "Temporarily reduced capacity"}
    problem = _Problem(
        TYPES.get(status, "about:blank"),
        titles.get(status, phrase(status)),
        status,
        DETAILS.get(decision.reason, phrase(status)),
        reason=decision.reason,
        violated_policies=tuple(name[:NAME_CHARS_MAX] for name in decision.violated[:VIOLATED_MAX]),
        request_id=request_id,
    )
    if len(decision.upgrade_url) <= URL_CHARS_MAX:
        problem.upgrade_url = decision.upgrade_url
    if decision.limit is not None:
        _add_numbers(problem, decision.limit, now_s)
    return _encoded(problem)


def _add_numbers(problem: _Problem, limit: LimitView, now_s: int) -> None:
    used = format_amount(limit.used, limit.scale)
    problem.used = Raw(used.encode())
    if limit.quota is None:
        return
    quota = format_amount(limit.quota, limit.scale)
    problem.limit = Raw(quota.encode())
    if problem.reason in {"limit_reached", "limit_contended", "grace_over"}:
        problem.detail = f'{problem.detail[:-1]}: {used} of {quota} in "{limit.name[:NAME_CHARS_MAX]}".'
    elif problem.reason == "cost_too_large":
        cost = format_amount(limit.cost, limit.scale)
        problem.detail = f'The request costs {cost}, more than the limit of {quota} in "{limit.name[:NAME_CHARS_MAX]}".'
    if now_s + limit.reset_s <= _LATEST_S:
        problem.reset = datetime.fromtimestamp(now_s + limit.reset_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encoded(problem: _Problem) -> str:
    text = msgspec.json.encode(problem).decode()
    return text if text.isascii() and "\x7f" not in text else _BEYOND_ASCII.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
