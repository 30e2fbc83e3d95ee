"""The place where benchmarks happen: a real installation of which the measured process has the first core for itself.

Guarantees: everything but what is measured shares the last core with the load; nothing is left behind.
Gives up:   a third core. On a machine with two, Redis, Postgres and the load take from each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from zlib import crc32

import asyncpg

from sidecar.embedded.port import free_port
from tests.servers.sidecar_dev import SidecarDev

SHARDS = 16
BURST = 1_000_000_000
CATALOGUE = """
identity: [{{header: x-tenant-id}}, {{api_key: authorization}}]
metrics: {{api_calls: {{}}}}
plans:
  standard:
    limits:
      api_calls: {{included: 1_000_000_000_000, period: month, cap: hard, on_outage: open}}
      burst: {{metric: api_calls, included: {burst}, period: minute, cap: hard, on_outage: open}}
      fair_use: {{metric: api_calls, included: 1_000_000_000_000, period: day, cap: soft}}
    features: {{branding: custom, llm: large}}
    forward: [branding, llm]
routes:
{rules}  - {{name: run, match: /v1/agents/*/run}}
"""
RULES = "".join(f"  - {{name: rule-{n}, match: GET /v1/things-{n}/*}}\n" for n in range(199))
READY_S = 30.0
LOOK_S = 0.001
MOST_URGENT = -20


def catalogue(burst: int = BURST) -> str:
    """Two hundred rules, of which the last one fits, and three limits on what it costs; one of them can be changed."""
    return CATALOGUE.format(burst=burst, rules=RULES)


CORES = sorted(os.sched_getaffinity(0))


def first_core() -> int:
    """The core of what is measured."""
    return CORES[0]


def last_core() -> int:
    """The core of everything else."""
    return CORES[-1]


def on_last_core() -> contextlib.AbstractContextManager[None]:
    """Run on the last core, and children started meanwhile."""
    return on_core(last_core())


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on a core, and children started meanwhile."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def in_front(priority: int) -> Iterator[None]:
    """Children started meanwhile have that real-time priority, if we may give it; 0 is none."""
    if priority:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def alone(pid: int) -> Iterator[None]:
    """A process goes before whatever else runs on its core (SCHED_FIFO), if we may say so, as if it were its own.

    Its children do not.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setscheduler(pid, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))


def pin(pid: int) -> None:
    """Give a process the first core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {first_core()})


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that others may enter: Postgres runs as somebody else when we are root."""
    directory = Path(tempfile.mkdtemp(prefix="quota-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def installation(env: Mapping[str, str] | None = None) -> Iterator[SidecarDev]:
    """A `sidecar dev` with one worker, which is pinned to the first core."""
    with folder() as directory:
        (directory / "catalogue.yaml").write_text(catalogue())
        dev = SidecarDev(directory / "dev", directory / "catalogue.yaml", env=env)
        with on_last_core():
            dev.start()
        try:
            pin(worker(dev))
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, redis(dev), MOST_URGENT)
            yield dev
        finally:
            dev.stop()


def redis(dev: SidecarDev) -> int:
    """Process id of Redis, which has a core of its own elsewhere."""
    return int(dev.now().pids["redis"])


def worker(dev: SidecarDev) -> int:
    """Process id of the only worker."""
    return int(dev.now().pids["authz"][0])


def tenants(dev: SidecarDev, count: int) -> list[str]:
    """Have so many tenants, and wait until Redis has them; the same ones each time."""
    names = [f"t-{number}" for number in range(count)]

    async def insert() -> None:
        connection = await asyncpg.connect(dev.at.postgres)
        try:
            await connection.execute(
                "insert into tenants (id, plan, shard) select * from unnest($1::text[], $2::text[], $3::int[])"
                " on conflict do nothing",
                names,
                ["standard"] * count,
                [crc32(name.encode()) % SHARDS for name in names],
            )
            while await connection.fetchval("select count(*) from tenants where rev > projected_rev"):
                await asyncio.sleep(0.05)
        finally:
            await connection.close()

    asyncio.run(insert())
    return names


class NotReady(Exception):
    """The sidecar did not become ready."""


class Serving:
    """A `sidecar serve --role authz` beside an installation, as it stands in a pod: it knows only its Redis."""

    def __init__(self, redis: str, state: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._ops_port = free_port()
        self.ops = f"http://127.0.0.1:{self._ops_port}"
        self.socket = state.parent / "authz.sock"
        self.state = state
        self.env = {
            **os.environ,
            "SIDECAR_STATE_DIR": str(state),
            "SIDECAR_REDIS_URL": redis,
            "SIDECAR_AUTHZ_LISTEN": f"127.0.0.1:{self.port},unix:{self.socket}",
            "SIDECAR_LOCAL_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_OPS_LISTEN": self.ops.removeprefix("http://"),
            "SIDECAR_DRAIN_S": "5",
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self.process is not None
        return self.process.pid

    @property
    def worker(self) -> int:
        """Process id of the worker."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def start(self, prefix: tuple[str, ...] = ()) -> float:
        """Start it and return after how many milliseconds /readyz said so; ``prefix`` is a command in front of it."""
        command = [*prefix, sys.executable, "-m", "sidecar", "serve", "--role", "authz", "--workers", "1"]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, env=self.env, stderr=subprocess.DEVNULL)
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - began > READY_S:
                self.kill()
                raise NotReady
            time.sleep(LOOK_S)
        return (time.perf_counter() - began) * 1_000

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def kill(self) -> None:
        """End it at once, without the clean stop that reports everything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def metrics(self) -> bytes:
        """What /metrics says now."""
        with urllib.request.urlopen(f"{self.ops}/metrics", timeout=5) as answer:
            return bytes(answer.read())

    def _ready(self) -> bool:
        try:
            # Most often nobody listens yet; what asks without HTTP takes little from who starts on the same cores.
            socket.create_connection(("127.0.0.1", self._ops_port), timeout=5).close()
            with urllib.request.urlopen(f"{self.ops}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextlib.contextmanager
def serving(dev: SidecarDev, env: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A sidecar beside an installation, pinned to the first core."""
    with folder() as directory:
        made = Serving(dev.at.redis, directory / "state", env)
        with on_last_core():
            made.start()
        try:
            pin(made.worker)
            yield made
        finally:
            made.stop()


def cpu_us(pid: int) -> float:
    """CPU time that a process has used so far, as the scheduler counts it.

    The count of /proc/PID/stat is a sample at each tick, which misses who goes to sleep just before all of them.
    """
    return sum(int(thread.read_text().split()[0]) for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1_000


def idle_s(core: int) -> float:
    """How long a core has had nothing to do so far."""
    found = re.search(rf"^cpu{core} +\d+ \d+ \d+ (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int) -> dict[str, int]:
    """``Rss``, ``Pss`` and ``Anonymous`` of a process, among others."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
