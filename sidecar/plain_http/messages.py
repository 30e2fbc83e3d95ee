"""Requests and answers of a plain HTTP server, as values."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from msgspec import Struct


class Request(Struct, frozen=True):
    """A request that was read whole; ``named`` are the parts of its path that the route has a name for."""

    method: str
    path: str
    named: dict[str, str]
    body: bytes


class Answer(Struct, frozen=True):
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def json(value: object, status: int = 200) -> Answer:
    """A value as JSON."""
    return Answer(status, msgspec.json.encode(value))


def problem(status: int, detail: str, *headers: tuple[str, str]) -> Answer:
    """A problem as RFC 9457 has it."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Answer(status, msgspec.json.encode(body), "application/problem+json", headers)
