"""Decisions as HTTP answers, ready to be written.

Allowed: 200 without a body, and ``x-quota-status``, ``x-quota-tenant``, ``x-quota-plan``, ``x-quota-feature-<name>``
for the upstream. Denied: ``x-quota-status: denied``, ``Retry-After`` where waiting helps, and a body of
``application/problem+json``. Both: ``RateLimit-Policy`` and ``RateLimit`` of draft-ietf-httpapi-ratelimit-headers-11
for the limit of the decision (none when it is unlimited), and the request's ``x-request-id``.

Amounts are base units in RateLimit, which knows integers only, and exact decimals in the body.

Guarantees: no value can break out of its header; everything that repeats is worked out once and kept in a bounded
            memo, so that an allowed request costs one lookup and the formatting of two numbers.
Gives up:   a ``Date`` header: the gateway in front writes its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from sidecar.enforcement.decision import Decision, LimitView
from sidecar.enforcement.fast_path import Allowance
from sidecar.gateway import fields, problem
from sidecar.memo import remember

TEMPLATES_MAX = 8_192
REQUEST_ID_BYTES_MAX = 128
HOUR_S = 3_600
JITTER_PARTS = 20  # of the wait: 5 percent
JITTER_S_MIN = 60
JITTER_S_MAX = 900
# Denials that last until a period ends; contended units or the store may be back in a moment.
PERIOD_REASONS = frozenset({"limit_reached", "grace_over"})

# HTTP/1.0 clients must be told that the connection stays; `last` turns this into "close".
_KEPT = b"Connection: keep-alive\r\n"
_LAST = b"Connection: close\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Key = tuple[str, str, str, str, int | None, int]


class Templates(Struct, frozen=True):
    """Formats of (remaining, reset) for one tenant and limit, and of a request id behind both."""

    features: tuple[tuple[str, str], ...]
    with_id: bytes
    without_id: bytes


class AnswerWriter:
    """Writes answers. ``wall_s`` is the wall clock; ``spread`` picks a number of seconds from 0 to its argument."""

    def __init__(self, wall_s: Callable[[], int], spread: Callable[[int], int] | None = None) -> None:
        self._wall_s = wall_s
        self._spread = spread or (lambda most: random.randint(0, most))
        self._templates: dict[Key, Templates] = {}

    def write(self, decision: Decision, request_id: bytes, *, nginx: bool) -> bytes:
        """The answer in the form that the gateway can pass on (see dialects.py)."""
        if not decision.allow:
            return self._denied(decision, request_id, nginx=nginx)
        limit = decision.limit or _UNLIMITED
        known = self._template(decision, limit)
        if request_id:
            return known.with_id % (limit.remaining, limit.reset_s, request_id)
        return known.without_id % (limit.remaining, limit.reset_s)

    def write_known(self, allowance: Allowance, request_id: bytes) -> bytes:
        """The answer to an allowance of the fast path, which keeps its template until mark or limit change."""
        known: Any = allowance.template
        if known is None:
            decision = allowance.decision(allowance.remaining, allowance.reset_s)
            known = allowance.template = self._template(decision, decision.limit or _UNLIMITED)
        if request_id:
            answer: bytes = known.with_id % (allowance.remaining, allowance.reset_s, request_id)
        else:
            answer = known.without_id % (allowance.remaining, allowance.reset_s)
        return answer

    def _template(self, decision: Decision, limit: LimitView) -> Templates:
        features = decision.features
        key = (decision.tenant, decision.plan, decision.quota_status, limit.name, limit.quota, limit.window_s)
        known = self._templates.get(key)
        # A tenant's features are one object until they change; comparing it is cheaper than hashing it.
        if known is None or known.features is not features:
            known = remember(self._templates, key, _allowed_templates(decision, limit), TEMPLATES_MAX)
        return known

    def _denied(self, decision: Decision, request_id: bytes, *, nginx: bool) -> bytes:
        wait_s = self._retry_after_s(decision)
        body = problem.body(decision, request_id.decode("latin-1"), self._wall_s())
        lines = ["x-quota-status: denied\r\n"]
        limit = decision.limit
        if limit is not None and limit.quota is not None:
            remaining, reset_s = max(limit.remaining, 0), limit.reset_s
            if decision.reason == "limit_contended":
                # What is left is held elsewhere: nothing of it can be had now, and it may come back at any moment.
                remaining, reset_s = 0, min(reset_s, wait_s)
            lines.append(_ratelimit(limit, limit.quota) % (remaining, reset_s))
        if wait_s:
            lines.append(f"Retry-After: {wait_s}\r\n")
        if decision.status == 401:  # noqa: PLR2004 - RFC 9110 wants a challenge with every 401
            lines.append('WWW-Authenticate: ApiKey realm="api"\r\n')
        if request_id:
            lines.append(f"x-request-id: {request_id.decode('latin-1')}\r\n")
        if nginx:
            shown = 401 if decision.status == 401 else 403  # noqa: PLR2004 - auth_request passes on no other
            lines.append(f"x-quota-http-status: {decision.status}\r\nx-quota-problem: {body}\r\n")
            return _plain(shown, "".join(lines), "")
        lines.append("Content-Type: application/problem+json\r\n")
        return _plain(decision.status, "".join(lines), body)

    def _retry_after_s(self, decision: Decision) -> int:
        """Seconds to wait: never before the reset of a spent limit, and spread for long periods against herds."""
        wait_s = decision.retry_after_s
        limit = decision.limit
        if not wait_s or limit is None or decision.reason not in PERIOD_REASONS:
            return wait_s
        if decision.reason == "limit_reached":
            wait_s = max(wait_s, limit.reset_s)
        if limit.window_s > HOUR_S:
            wait_s += self._spread(min(max(wait_s // JITTER_PARTS, JITTER_S_MIN), JITTER_S_MAX))
        return wait_s


def refused(status: int, detail: str, *, nginx: bool = False) -> bytes:
    """The answer to a check that is no proper one: malformed, oversized, of no dialect, without the secret."""
    body = problem.plain(status, detail)
    # What is wrong with a check must stop the request at nginx too, which would make a 500 of anything but 403.
    if nginx:
        return _plain(403, f"x-quota-http-status: {status}\r\nx-quota-problem: {body}\r\n", "")
    return _plain(status, "Content-Type: application/problem+json\r\n", body)


def last(answer: bytes) -> bytes:
    """The same answer, as the last one on its connection."""
    return answer.replace(_KEPT, _LAST, 1)


_UNLIMITED = LimitView("", None, 0, 0, 0, 0)
# Takes an argument and prints nothing of it, so that every template takes the same two.
_NOTHING = "%.0r"


def _allowed_templates(decision: Decision, limit: LimitView) -> Templates:
    lines = [
        f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{_KEPT.decode()}",
        f"x-quota-status: {fields.visible(decision.quota_status)}\r\n",
    ]
    if decision.tenant:
        lines.append(f"x-quota-tenant: {fields.visible(decision.tenant)}\r\n")
    if decision.plan:
        lines.append(f"x-quota-plan: {fields.visible(decision.plan)}\r\n")
    lines.extend(
        f"x-quota-feature-{fields.name_part(name)}: {fields.visible(value)}\r\n" for name, value in decision.features
    )
    numbers = f"{_NOTHING}{_NOTHING}" if limit.quota is None else _ratelimit(limit, limit.quota)
    template = "".join(lines).replace("%", "%%") + numbers
    with_id, without_id = f"{template}x-request-id: %b\r\n\r\n", f"{template}\r\n"
    return Templates(decision.features, with_id.encode(), without_id.encode())


def _ratelimit(limit: LimitView, quota: int) -> str:
    """Both RateLimit lines as a format of (remaining, reset)."""
    name = fields.string(limit.name)
    window = f";w={fields.integer(limit.window_s)}" if limit.window_s > 0 else ""
    policy = f"RateLimit-Policy: {name};q={fields.integer(quota)}{window}\r\n"
    # What is left of a quota beyond the largest integer of a structured field is shown as that integer.
    left = "%d" if quota <= fields.INTEGER_MAX else f"{fields.INTEGER_MAX}{_NOTHING}"
    return f"{policy}RateLimit: {name}".replace("%", "%%") + f";r={left};t=%d\r\n"


def _plain(status: int, lines: str, body: str) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status} {problem.phrase(status)}\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + _KEPT + lines.encode("latin-1") + b"\r\n" + content
