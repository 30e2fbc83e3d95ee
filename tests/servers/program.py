"""`sidecar serve` as a child process with a state directory of its own, which may lie on a small disk.

Guarantees: its log is a file that stays; stop() leaves no process behind, detach() no mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from sidecar.embedded.child import spawn
from sidecar.embedded.port import free_port
from tests.servers.processes import alive, family

READY_S = 60.0
STOP_S = 40.0
POLL_S = 0.05
DISK_BYTES = 48 << 20


class Disk:
    """A folder on a small file system of its own where that may be mounted, so that it can be filled up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounted = False
        self._ballast = path / "ballast"

    def attach(self) -> None:
        self.path.mkdir(parents=True)
        if os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.path)]
            self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def detach(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True, check=False)
            self.mounted = False

    def fill(self) -> None:
        """Leave not a byte."""
        assert self.mounted, "a disk that is not ours is not filled"
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class Program:
    """One `sidecar serve` with a state directory and an ops port of its own."""

    def __init__(self, name: str, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.disk = Disk(folder / name)
        self.state = self.disk.path / "state"
        self.ops = f"http://127.0.0.1:{free_port()}"
        self.starts = 0
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "sidecar", "serve", *arguments]
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")},
            **environment,
            "SIDECAR_STATE_DIR": str(self.state),
            "SIDECAR_OPS_LISTEN": self.ops.removeprefix("http://"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its processes have logged so far."""
        return self._log.read_text()

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as output:
            self._process = spawn(
                self._command,
                directory=Path.cwd(),
                output=output.fileno(),
                death_signal=signal.SIGTERM,
                environment=self._environment,
            )

    def children(self) -> list[int]:
        """Its workers, or its backoffice."""
        return [pid for pid in family(self.pid)[1:] if alive(pid)] if self.running else []

    async def ready(self, within_s: float = READY_S) -> None:
        """Wait until it says that it is."""
        deadline = asyncio.get_running_loop().time() + within_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while asyncio.get_running_loop().time() < deadline:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with session.get(f"{self.ops}/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_S)
        raise AssertionError(f"{self.name} was not ready within {within_s} s:\n{self.log[-3000:]}")

    async def metrics(self) -> str:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"{self.ops}/metrics") as answer,
        ):
            return await answer.text()

    async def stop(self) -> None:
        """As a service manager does: kindly, then by force."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def command(self, *arguments: str, state: Path | None = None, within_s: float = 120) -> tuple[int, str]:
        """Run a command of the program with these settings, of this state directory or another one."""
        environment = {**self._environment, "SIDECAR_STATE_DIR": str(state or self.state)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sidecar",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            told, _ = await asyncio.wait_for(process.communicate(), within_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            return -1, f"no end within {within_s} s"
        return process.returncode or 0, told.decode(errors="replace")
