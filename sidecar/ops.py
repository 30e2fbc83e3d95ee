"""The ops listener of a program: health, readiness by component, and the metrics of all its processes added up.

Guarantees: a process that hangs delays an answer by at most a second and never fails it.
Gives up:   one snapshot in time: processes are read one beside the other, not in one instant.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web
from msgspec import Struct

from sidecar import address, child, readings
from sidecar.child import Component, Member, Unanswered
from sidecar.clock import Clock
from sidecar.errors import JsonInvalid, SettingsInvalid
from sidecar.json_text import decoded
from sidecar.problems import problems
from sidecar.telemetry import Reading

ADVANCE_MS_MAX = 10 * 366 * 86_400_000
BODY_BYTES_MAX = 4_096
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?", re.ASCII)


class Fleet(Protocol):
    """The supervisor: who is there, how often each kind had to be restarted, and what it says of itself."""

    def members(self) -> list[Member]: ...
    def restarts(self) -> dict[str, int]: ...
    def components(self) -> dict[str, Component]: ...
    def reading(self) -> Reading: ...


# Tells servers that have a clock of their own (the ledger's) how far the wall clock is ahead now, in ms.
ClockMoved = Callable[[int], Awaitable[None]]


class _Advance(Struct, forbid_unknown_fields=True):
    advance: str


class Ops:
    """Serves /healthz, /readyz and /metrics, and in development /dev/clock."""

    __slots__ = ("_clock", "_clock_moved", "_fleet", "_listen", "_runner", "_totals")

    def __init__(self, listen: str, fleet: Fleet, clock: Clock, clock_moved: ClockMoved | None = None) -> None:
        self._listen = listen
        self._fleet = fleet
        self._clock = clock
        self._clock_moved = clock_moved
        self._totals = readings.Totals()
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[problems])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        if clock.movable:
            app.router.add_post("/dev/clock", self._move_clock)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)

    async def start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, address.listen(self._listen)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        members = self._fleet.members()
        told = await asyncio.gather(*(_components(member) for member in members))
        supervisor = (Member("supervisor", "supervisor", 0, Path()), self._fleet.components())
        ready, parts = readiness([supervisor, *zip(members, told, strict=True)])
        return _json({"ready": ready, "components": parts}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        members = self._fleet.members()
        from sidecar import exposition  # noqa: PLC0415 - the library is 5 MiB, and nobody may ever scrape this process

        told = await asyncio.gather(*(_reading(member) for member in members))
        answered: dict[str, Member] = {}
        for member, reading in zip(members, told, strict=True):
            if reading is not None:
                answered[member.name] = member
                self._totals.seen(member.name, member.pid, reading)
        kinds = {member.kind for member in members}
        own: Reading = {
            "sidecar_processes": {(kind,): [sum(m.kind == kind for m in answered.values())] for kind in kinds},
            "sidecar_restarts_total": {(kind,): [count] for kind, count in self._fleet.restarts().items()},
        }
        body = exposition.render(self._totals.total(set(answered), readings.merge([own, self._fleet.reading()])))
        return web.Response(body=body, headers={"content-type": exposition.CONTENT_TYPE})

    async def _move_clock(self, request: web.Request) -> web.Response:
        try:
            wanted = decoded(await request.read(), _Advance)
            advance_ms = duration_ms(wanted.advance)
        except (JsonInvalid, SettingsInvalid) as error:
            return _json({"error": f'{error}; send {{"advance": "36h"}}'}, status=400)
        offset_ms = self._clock.advance(advance_ms)
        if self._clock_moved is not None:
            await self._clock_moved(offset_ms)
        return _json({"offset_ms": offset_ms, "now_ms": self._clock.wall_ms()})


def duration_ms(text: str) -> int:
    """Read ``36h``, ``1d12h`` or ``250ms``; units largest first, each once. Raises SettingsInvalid."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise SettingsInvalid(f"{text!r} is no duration; write whole numbers with d, h, m, s or ms, largest first")
    total = sum(int(number) * unit for number, unit in zip(found.groups(), _UNITS_MS.values(), strict=True) if number)
    if total > ADVANCE_MS_MAX:
        raise SettingsInvalid(f"{text!r} is too far; at most ten years at once")
    return total


def readiness(told: list[tuple[Member, dict[str, Component] | None]]) -> tuple[bool, dict[str, Any]]:
    """Judge what the processes told: ready when of every kind at least one has all it requires.

    One worker that restarts does not make a pod unready, since the kernel hands its port's connections to the others.
    """
    parts: dict[str, Any] = {}
    able: dict[str, bool] = {}
    for member, components in told:
        if components is None:
            components = {"process": Component(ok=False, detail="does not answer")}  # noqa: PLW2901
        able[member.kind] = able.get(member.kind, False) or all(c.ok or not c.required for c in components.values())
        for name, component in components.items():
            part = parts.setdefault(name, {"ok": True, "required": False, "processes": {}})
            part["ok"] &= component.ok
            part["required"] |= component.required
            part["processes"][member.name] = component.detail or ("ok" if component.ok else "not ok")
    return bool(able) and all(able.values()), parts


async def _components(member: Member) -> dict[str, Component] | None:
    try:
        return await child.components(member.socket) if member.pid else None
    except Unanswered:
        return None


async def _reading(member: Member) -> Reading | None:
    try:
        return await child.reading(member.socket) if member.pid else None
    except Unanswered:
        return None


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
