"""`sidecar dev --json` as a child process: started, asked through its command line, stopped.

Guarantees: ports are free ones and stay the same over a restart; stop() leaves no process of it behind.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from msgspec import Struct, convert

from tests.servers.child import Child

START_S = 60
STOP_S = 40
COMMAND_S = 60


class Started(Struct, frozen=True):
    """The first line of `sidecar dev --json`."""

    authz: str
    local: str
    ops: str
    control: str
    redis: str
    postgres: str
    stripe: str
    admin_token: str
    pids: dict[str, Any]


class SidecarDev:
    """One installation in one state directory, which may be stopped and started again."""

    def __init__(
        self, state: Path, catalogue: Path | None = None, *, workers: int = 1, env: Mapping[str, str] | None = None
    ) -> None:
        self.state = state
        self._catalogue = catalogue
        self._workers = workers
        self._env = {"SIDECAR_STATE": str(state), "PYTHONUNBUFFERED": "1", **(env or {})}
        self._ports = dict.fromkeys(("authz", "local", "ops", "control"), 0)
        self._child: Child | None = None
        self._started: Started | None = None

    @property
    def at(self) -> Started:
        """Where everything listens."""
        assert self._started is not None, "not started"
        return self._started

    def now(self) -> Started:
        """The same as it is now: process ids change when the supervisor replaces one."""
        return convert(json.loads((self.state / "dev.json").read_text()), Started)

    @property
    def pid(self) -> int:
        """The process of `sidecar dev` itself."""
        assert self._child is not None, "not running"
        return self._child.pid

    @property
    def authz_port(self) -> int:
        port = urlsplit(self.at.authz).port
        assert port is not None
        return port

    def start(self) -> Started:
        assert self._child is None, "already started"
        command = [sys.executable, "-m", "sidecar", "dev", "--json", "--state", str(self.state)]
        command += ["--workers", str(self._workers)]
        for name, port in self._ports.items():
            command += [f"--{name}-port", str(port)]
        if self._catalogue is not None:
            command += ["--catalogue", str(self._catalogue)]
        self._child = Child(command, env=self._env)
        first = self._child.wait(lambda: self._child is not None and self._child.out[:1], START_S)
        if not first:
            tail = self._child.tail()
            self.stop()
            raise AssertionError(f"sidecar dev did not start:\n{tail}")
        self._started = convert(json.loads(first[0]), Started)
        for name in self._ports:
            self._ports[name] = urlsplit(getattr(self._started, name)).port or 0
        return self._started

    def cli(self, *args: str, status: int = 0) -> str:
        """Run a command against this installation and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *args],
            env={**os.environ, **self._env},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == status, f"sidecar {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def cli_json(self, *args: str, status: int = 0) -> Any:
        return json.loads(self.cli(*args, "--json", status=status))

    def put_tenant(self, tenant: str, plan: str) -> None:
        self.cli("tenant", "put", tenant, "--plan", plan)

    def create_key(self, tenant: str) -> str:
        """A new API key; the command shows it once."""
        return str(self.cli_json("key", "create", tenant)["key"])

    def new_tenant(self, plan: str) -> tuple[str, str]:
        """A tenant nobody else uses, and its API key; both are where sidecars look for them."""
        tenant = f"{plan}-{secrets.token_hex(4)}"
        self.put_tenant(tenant, plan)
        key = self.create_key(tenant)
        self.cli("flush")
        return tenant, key

    def usage(self, tenant: str) -> Any:
        return self.cli_json("usage", tenant)

    def ledger(self, tenant: str, metric: str) -> int:
        """What Postgres has, after everything counted before has arrived there."""
        self.cli("flush")
        return int(self.usage(tenant)["ledger"].get(metric, 0))

    def advance_clock(self, by: str) -> None:
        body = json.dumps({"advance": by}).encode()
        request = urllib.request.Request(f"{self.at.ops}/dev/clock", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.at.ops}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.at.ops}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def signal_authz(self, number: signal.Signals) -> None:
        """To every worker there is."""
        for pid in self.now().pids["authz"]:
            os.kill(pid, number)

    def signal_redis(self, number: signal.Signals) -> None:
        os.kill(self.now().pids["redis"], number)

    def log(self) -> str:
        return self._child.tail() if self._child is not None else ""

    def log_lines(self) -> list[str]:
        """Everything it logged so far."""
        return list(self._child.err) if self._child is not None else []

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """As Ctrl-C does."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        return child.stop(number, STOP_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
