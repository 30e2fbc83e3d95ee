"""Errors of the HTTP listeners that people and applications ask: problem+json (RFC 9457) whatever was wrong.

Gives up:   what nobody expected: that stays aiohttp's 500 and is logged with its trace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(status: int, title: str, detail: str) -> web.Response:
    """A problem as RFC 9457 has it."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/problem+json")


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a path or a method that does not exist, or a body that is too large, with a problem."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = problem(error.status, error.reason, f"{request.method} {request.path}: {error.text or error.reason}")
        if "allow" in error.headers:
            answer.headers["allow"] = error.headers["allow"]
        return answer
