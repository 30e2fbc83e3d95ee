"""The stand-in for Stripe as an embedded server of `sidecar dev`.

Guarantees: the same key, webhook secret and, where it is still free, port for one state directory; told to end or left
            alone by its parent, it saves what it was told.
Gives up:   being there: an installation from a wheel has no stand-in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from sidecar.embedded.child import spawn
from sidecar.embedded.port import is_free
from sidecar.embedded.server import EmbeddedServer, write_private
from sidecar.errors import EmbeddedServerFailed

MODULE = "sidecar.embedded.stripe"
ANSWER_S = 2.0
ENDPOINT = "sidecar dev"


def is_there() -> bool:
    """Whether this installation has the stand-in."""
    return importlib.util.find_spec(MODULE) is not None


class EmbeddedStripe(EmbeddedServer):
    """A stand-in with its state in a directory; its clock follows a clock file."""

    name = "Stripe stand-in"
    stop_steps = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, directory: Path, clock_file: Path, *, port: int = 0) -> None:
        super().__init__(directory, port=port)
        self._clock_file = clock_file.absolute()
        self._port_file = self.directory / "port"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return f"sk_test_{self.password}"

    @property
    def webhook_secret(self) -> str:
        return "whsec_" + hashlib.sha256(self.password.encode()).hexdigest()

    async def start(self) -> None:
        """Start it; the port of last time is taken again when it is free."""
        if self.port == 0 and self._port_file.exists():
            last = int(self._port_file.read_text(encoding="ascii") or 0)
            self.port = last if last and is_free(last) else 0
        await super().start()
        write_private(self._port_file, str(self.port))

    async def deliver_to(self, url: str) -> None:
        """Deliver every event to this endpoint from now on, instead of the one named here before."""
        await self._control("/_webhooks", {"name": ENDPOINT, "url": url, "secrets": [self.webhook_secret]})

    async def _prepare(self, lock: int) -> None:
        """Leave its files to the stand-in, which makes them."""

    def _spawn(self, lock: int, output: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", MODULE, "--port", str(self.port), "--clock-file", str(self._clock_file)]
        return spawn(
            [*command, "--state", str(self.directory / "state.json")],
            directory=Path.cwd(),
            output=output,
            # It saves its state at this signal; whoever wants it gone at once follows with SIGKILL.
            death_signal=signal.SIGTERM,
            # By the environment, since everybody can read the arguments of a process.
            environment={**os.environ, "STRIPE_STANDIN_KEY": self.key},
            keep_fds=(lock,),
        )

    async def _answers(self) -> bool:
        try:
            found = await self._control("/_health")
        except EmbeddedServerFailed:
            return False
        return bool(found.get("stripe") == "stand-in")

    async def _control(self, path: str, body: Any = None) -> dict[str, Any]:
        method = "GET" if body is None else "POST"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as session,
                session.request(method, self.url + path, json=body) as answer,
            ):
                answer.raise_for_status()
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EmbeddedServerFailed(f"{self.name} did not answer {path}; see {self.log}") from error
