"""Real Envoy and real Nginx with the configurations of this repository, in which only ports are replaced.

Both offer the same things, so that one test runs against both.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sysconfig
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from tests.servers.child import Child

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or "nginx"
ENVOY = Path(sysconfig.get_path("scripts")) / "envoy"
Mode = Literal["closed", "open"]
Replace = dict[str, dict[str, str]]


class Counts(Struct, frozen=True):
    """What a gateway itself says it was told: allowed, denied, and could not ask."""

    allowed: int
    denied: int
    away: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def variant(text: str, name: str) -> str:
    """Put every line marked ``# variant <name>:`` in place of the line above it, as the guides say."""
    lines: list[str] = []
    found = False
    for line in text.splitlines():
        indent, mark, other = line.partition(f"# variant {name}: ")
        if mark:
            lines[-1] = indent + other
            found = True
        else:
            lines.append(line)
    assert found, f"no variant {name}"
    return "\n".join(lines) + "\n"


class Gateway(ABC):
    """One gateway process in front of one application and one sidecar."""

    kind: str

    def __init__(self, folder: Path, *, authz_port: int, upstream_port: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.authz_port = authz_port
        self.upstream_port = upstream_port
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> list[Any]:
        """The access log so far."""
        assert self.child is not None
        return [json.loads(line) for line in list(self.child.out) if line.startswith("{")]

    def logged(self, requests: int) -> list[Any]:
        """The access log, once it has that many lines: a line is written after its answer was sent."""
        assert self.child is not None
        self.child.wait(lambda: len(self.log()) >= requests)
        return self.log()

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()
            self.child = None

    def start(self, mode: Mode = "closed", *, socket_path: Path | None = None, replace: Replace | None = None) -> None:
        """Start it as shipped, in a variant, or with texts of its files replaced (by file name)."""
        for source in self.sources():
            text = source.read_text()
            for old, new in (replace or {}).get(source.name, {}).items():
                assert old in text, old
                text = text.replace(old, new)
            if mode == "open" and "# variant open: " in text:
                text = variant(text, "open")
            if socket_path is not None and "# variant unix-socket: " in text:
                text = variant(text, "unix-socket").replace("/run/sidecar/authz.sock", str(socket_path))
            (self.folder / source.name).write_text(self.with_ports(text))
        self.run()

    @abstractmethod
    def sources(self) -> list[Path]:
        """The shipped files."""

    @abstractmethod
    def with_ports(self, text: str) -> str:
        """The text with the default ports replaced, and nothing else."""

    @abstractmethod
    def run(self) -> None:
        """Start the program on the files in the folder and wait until it accepts."""

    @abstractmethod
    def counts(self, requests: int) -> Counts:
        """Its own counters, after that many requests."""


class Envoy(Gateway):
    kind = "envoy"

    def sources(self) -> list[Path]:
        return [ROOT / "envoy" / "envoy.yaml"]

    def with_ports(self, text: str) -> str:
        self.admin_port = free_port()
        ports = {9000: self.authz_port, 8080: self.upstream_port, 10000: self.port, 9901: self.admin_port}
        for default, port in ports.items():
            text = text.replace(f"port_value: {default} ", f"port_value: {port} ")
        return text

    def run(self) -> None:
        # The access log would come ten seconds late.
        options = ["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "20"]
        self.child = Child([str(ENVOY), "-c", str(self.folder / "envoy.yaml"), *options])
        self.child.wait_line("starting workers")
        while self.stat("listener_manager.workers_started") == 0:  # until then nothing accepts
            assert self.child.running(), self.child.tail()

    def run_text(self, text: str) -> None:
        """The same with a configuration from elsewhere."""
        (self.folder / "envoy.yaml").write_text(self.with_ports(text))
        self.run()

    def stat(self, name: str) -> int:
        url = f"http://127.0.0.1:{self.admin_port}/stats?format=json&filter=^{name}$"
        with urllib.request.urlopen(url, timeout=10) as answer:
            stats = json.loads(answer.read())["stats"]
        return sum(int(entry["value"]) for entry in stats)

    def counts(self, requests: int) -> Counts:
        self.logged(requests)
        ok, denied, error = (self.stat(f"http.edge.ext_authz.quota.{name}") for name in ("ok", "denied", "error"))
        return Counts(ok, denied, error)


class Nginx(Gateway):
    kind = "nginx"

    def sources(self) -> list[Path]:
        return sorted((ROOT / "nginx").glob("*.conf"))

    def with_ports(self, text: str) -> str:
        text = text.replace("127.0.0.1:9000;", f"127.0.0.1:{self.authz_port};")
        text = text.replace("127.0.0.1:8080;", f"127.0.0.1:{self.upstream_port};")
        return text.replace("listen 10000;", f"listen 127.0.0.1:{self.port};")

    def run(self) -> None:
        assert shutil.which(NGINX), "nginx is needed: apt-get install nginx-light"
        # Nginx started by root would give its workers to a user who may not enter a test's folder.
        globals_ = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        config = self.folder / "nginx.conf"
        self.child = Child([NGINX, "-p", f"{self.folder}/", "-c", str(config), "-e", "stderr", "-g", globals_])
        self.child.wait_line("start worker process ")

    def counts(self, requests: int) -> Counts:
        log = self.logged(requests)
        away = sum(line["away"] == "yes" for line in log)
        denied = sum(line["away"] != "yes" and line["quota"] == "denied" for line in log)
        allowed = sum(line["away"] != "yes" and line["quota"] not in ("", "denied") for line in log)
        return Counts(allowed, denied, away)


GATEWAYS: dict[str, type[Gateway]] = {"envoy": Envoy, "nginx": Nginx}
