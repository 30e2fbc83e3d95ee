"""Envoy as the edge of a chaos run."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import urllib.error

from sidecar.embedded.child import spawn
from tests.e2e.gateways import ENVOY, Envoy

READY_S = 60.0
POLL_S = 0.05


class EdgeEnvoy(Envoy):
    """Envoy with its output in a file: an access log of minutes has no place in memory."""

    def run(self) -> None:
        options = ["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "1000"]
        with (self.folder / "envoy.log").open("ab") as output:
            self._process = spawn(
                [str(ENVOY), "-c", str(self.folder / "envoy.yaml"), *options],
                directory=self.folder,
                output=output.fileno(),
                death_signal=signal.SIGKILL,
            )

    async def accepting(self) -> None:
        deadline = asyncio.get_running_loop().time() + READY_S
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(urllib.error.URLError, OSError):
                if self.stat("listener_manager.workers_started"):
                    return
            await asyncio.sleep(POLL_S)
        raise AssertionError("Envoy does not accept connections")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
