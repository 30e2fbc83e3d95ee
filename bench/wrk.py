"""wrk, the load generator in C, on the last core if nothing else is said."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

from bench import place

SECONDS_MAX = 3_600


class Load:
    """What wrk told when it was stopped: requests answered, and requests a second."""

    def __init__(self) -> None:
        self.told = ""
        self.requests = 0
        self.rate = 0.0

    def take(self, told: str) -> None:
        """Read what it told."""
        requests = re.search(r"(\d+) requests in", told)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
        if requests is None or rate is None:
            raise SystemExit(f"wrk told nothing: {told}")
        self.told, self.requests, self.rate = told, int(requests[1]), float(rate[1])

    def check(self, refused_max: float = 0) -> None:
        """End with what it told, unless every answer was a 2xx, but for a part of ``refused_max``."""
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", self.told)
        if "Socket errors" in self.told or (refused and int(refused[1]) > refused_max * self.requests):
            raise SystemExit(self.told)


@contextlib.contextmanager
def running(
    url: str, script: str, connections: int, *, threads: int = 1, priority: int = 0, core: int | None = None
) -> Iterator[Load]:
    """Load a server meanwhile; with real-time priority if one is given. The numbers are there afterwards."""
    if not shutil.which("wrk"):
        raise SystemExit("this benchmark needs wrk; install the Debian package wrk")
    load = Load()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{SECONDS_MAX}", "-s", file.name, url]
        with place.on_core(place.last_core() if core is None else core), place.in_front(priority):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield load
        finally:
            process.send_signal(signal.SIGINT)
            told, _ = process.communicate()
    load.take(told)


def drive(
    url: str, script: str, seconds: float, connections: int, *, refused_max: float = 0, core: int | None = None
) -> tuple[float, int]:
    """Load a server for some seconds; requests a second, and requests in all. Answers must be as ``check`` says."""
    with running(url, script, connections, core=core) as load:
        time.sleep(seconds)
    load.check(refused_max)
    return load.rate, load.requests


def headers(named: dict[str, str]) -> str:
    """A script: headers of every request."""
    return "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in named.items())
