"""One stand-in as a server: its listener, its background tick, and its kept state.

Guarantees: it listens on loopback only, and goes on with the state of its file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from aiohttp import web

from sidecar.embedded.stripe import keeping, routes, webhooks
from sidecar.embedded.stripe.account import Account
from sidecar.embedded.stripe.app import App
from sidecar.embedded.stripe.clock import StandInClock
from sidecar.embedded.stripe.controls import Controls
from sidecar.embedded.stripe.delivery import Deliveries
from sidecar.embedded.stripe.faults import Faults
from sidecar.embedded.stripe.idempotency import Idempotency

HOST = "127.0.0.1"
TICK_S = 0.1
SAVE_S = 1.0
# Saving takes at most this share of the time, however large the state grows.
SAVE_SHARE = 0.05

log = logging.getLogger(__name__)


class StripeStandIn:
    """Opened by start(), closed by stop(), as often as wanted: it keeps its port and everything it was told."""

    def __init__(
        self, key: str, *, port: int = 0, clock_file: Path | None = None, state_file: Path | None = None
    ) -> None:
        self.keys = {key}  # all of the one account, as while one is replaced
        self.port = port
        self.account = Account(StandInClock(clock_file))
        self.faults = Faults()
        self.idempotency = Idempotency()
        self.deliveries = Deliveries(self.account, self.faults)
        self.controls = Controls(self.account, self.faults, self.deliveries)
        routes.wire(self.account)
        self._app = App(self.account, self.keys, self.faults, self.idempotency, self.controls)
        self._state_file = state_file
        self._saved = 0
        self._runner: web.ServerRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        if state_file is not None and state_file.exists():
            keeping.load(state_file, self.account, self.idempotency, self.deliveries)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def deliver_to(self, url: str, secrets: list[str]) -> None:
        """Deliver every event to this endpoint, signed with these secrets; one of that url is changed, not doubled."""
        webhooks.put(self.account, url, secrets)

    async def start(self) -> None:
        runner = web.ServerRunner(web.Server(self._app.handle, access_log=None), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, HOST, self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._runner = runner
        await self.deliveries.start()
        self._tasks = [asyncio.create_task(self._tick())]
        if self._state_file is not None:
            self._tasks.append(asyncio.create_task(self._save_often(self._state_file)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        await self.deliveries.stop()
        if self._state_file is not None:
            self._save(self._state_file)

    async def _tick(self) -> None:
        while True:
            try:
                self.account.catch_up()
            except Exception:
                log.exception("the stand-in failed")
            await asyncio.sleep(TICK_S)

    async def _save_often(self, path: Path) -> None:
        took_s = 0.0
        while True:
            await asyncio.sleep(max(SAVE_S, took_s / SAVE_SHARE))
            if self.account.changes != self._saved:
                began = time.monotonic()
                self._save(path)
                took_s = time.monotonic() - began

    def _save(self, path: Path) -> None:
        self._saved = self.account.changes
        keeping.save(path, self.account, self.idempotency, self.deliveries)
