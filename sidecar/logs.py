"""Structured logs on stderr: one JSON object a line, or ``key=value`` text where a person is looking.

Guarantees: an event's name is constant and its particulars are fields; a state is logged when it changes, not while
            it lasts.
Gives up:   a line per request; those are counted, not logged.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import traceback
from typing import Any, TextIO

from msgspec import json


def configure(level: str, role: str, stream: TextIO | None = None) -> None:
    """Send this process' logs to stderr, each line marked with the role that wrote it."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(_Text(role) if target.isatty() else _Json(role))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # At debug level Stripe's library writes whole answers, with the data of customers.
    for chatty in ("aiohttp.access", "alembic", "asyncio", "stripe"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def fields(**particulars: Any) -> dict[str, Any]:
    """Particulars of an event: ``log.info("worker ready", extra=fields(worker=1))``."""
    return {"fields": particulars}


class Transition:
    """A state that is either good or bad, logged only when it changes."""

    __slots__ = ("_good", "_log", "_name")

    def __init__(self, log: logging.Logger, name: str) -> None:
        self._log = log
        self._name = name
        self._good: bool | None = None

    def good(self, **particulars: Any) -> None:
        """Note that the state is good; the first time is only told at debug level."""
        if self._good is not True:
            level = logging.DEBUG if self._good is None else logging.INFO
            self._log.log(level, "%s is back", self._name, extra=fields(**particulars))
        self._good = True

    def bad(self, **particulars: Any) -> None:
        """Note that the state is bad."""
        if self._good is not False:
            self._log.warning("%s is away", self._name, extra=fields(**particulars))
        self._good = False


class _Json(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        return json.encode(_line(record, self._role), enc_hook=str).decode()


class _Text(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record, self._role)
        head = f"{line.pop('time')[11:23]} {line.pop('level'):7} {line.pop('role'):12} {line.pop('event')}"
        trace = line.pop("trace", "")
        rest = "".join(f" {key}={value}" for key, value in line.items() if key != "logger")
        return f"{head}{rest}" + (f"\n{trace}" if trace else "")


def _line(record: logging.LogRecord, role: str) -> dict[str, Any]:
    time = dt.datetime.fromtimestamp(record.created, dt.UTC)
    line: dict[str, Any] = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "role": role,
        "logger": record.name,
        "event": record.getMessage(),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[0] is not None:
        line["trace"] = "".join(traceback.format_exception(*record.exc_info))
    return line
