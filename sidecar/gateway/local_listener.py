"""The local listener, opened at the start of a worker and served from its first connection on.

Guarantees: aiohttp, a third of a worker's memory and of its time to be ready, is imported only where the application
            asks here. A thread imports it: decisions go on meanwhile.
Gives up:   time of the first answer, some tenths of a second.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING

from sidecar import address

if TYPE_CHECKING:
    import socket

    from aiohttp import web

    from sidecar.enforcement.enforcer import Enforcer

log = logging.getLogger(__name__)

STOP_S = 2


class LocalListener:
    """Serves the application of local.py."""

    def __init__(self, enforcer: Enforcer) -> None:
        self._enforcer = enforcer
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, where: str) -> None:
        """Listen; raises SettingsInvalid that says what is in the way."""
        self._socket = listener = address.listen(where)
        asyncio.get_running_loop().add_reader(listener, self._called, listener)

    async def stop(self) -> None:
        """Accept nothing more and answer what is under way, within STOP_S."""
        listener, self._socket = self._socket, None
        if listener is None:
            return
        if self._serving is None:
            asyncio.get_running_loop().remove_reader(listener)
        else:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        listener.close()

    def _called(self, listener: socket.socket) -> None:
        """Somebody connects for the first time, and waits in the backlog until this is served."""
        asyncio.get_running_loop().remove_reader(listener)
        self._serving = asyncio.create_task(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        try:
            await asyncio.to_thread(importlib.import_module, "sidecar.gateway.local")
            from aiohttp import web  # noqa: PLC0415 - now it is there

            from sidecar.gateway.local import local_app  # noqa: PLC0415 - the same

            self._runner = web.AppRunner(
                local_app(self._enforcer), access_log=None, handle_signals=False, shutdown_timeout=STOP_S
            )
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except Exception:
            log.exception("the local listener cannot be served")
