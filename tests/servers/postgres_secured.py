"""A Postgres as an operator should run it: TLS only, and the logins of k8s/postgres-roles.sql."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import asyncpg

from sidecar.embedded import EmbeddedPostgres
from sidecar.embedded.postgres import OLDEST, Installation, find_postgres
from tests.servers.certificates import Certificates

ROLES = Path(__file__).parents[2] / "k8s" / "postgres-roles.sql"
DEBIAN = Path("/usr/lib/postgresql")
LOGINS = ("quota_migrator", "quota_flusher", "quota_control", "quota_operator")


def with_tls() -> Installation:
    """Debian's Postgres, which is not on PATH; else the usual one. The wheel's was built without TLS."""
    found = [Installation(path.parent, int(path.parts[-3])) for path in DEBIAN.glob("*/bin/postgres")]
    return max(
        (installation for installation in found if installation.major >= OLDEST),
        key=lambda installation: installation.major,
        default=find_postgres(),
    )


class PostgresSecured:
    """``secure`` sets up a Postgres of the test's own."""

    def __init__(self, server: EmbeddedPostgres, certificates: Certificates) -> None:
        self._server = server
        self._certificates = certificates
        self._passwords = {login: secrets.token_hex(12) for login in LOGINS}

    async def secure(self) -> bool:
        """False where the programs of this machine were built without TLS."""
        administrator = await asyncpg.connect(self._server.dsn)
        try:
            for place, source in zip(("server.crt", "server.key"), self._certificates.server, strict=True):
                self._give(source, self._server.data / place)
            try:
                await administrator.execute("alter system set ssl = on")
            except asyncpg.PostgresError:
                return False
            await administrator.execute(ROLES.read_text())
            for login, password in self._passwords.items():
                await administrator.execute(f"alter role {login} password '{password}'")
            access = self._server.data / "pg_hba.conf"
            access.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
            await administrator.execute("select pg_reload_conf()")
        finally:
            await administrator.close()
        return True

    def dsn(self, login: str, *, mode: str = "verify-full", ca: Path | None = None, password: str = "") -> str:
        """How a part is told of it."""
        place = self._server.dsn.partition("@")[2]
        authority = f"&sslrootcert={ca or self._certificates.ca}" if mode.startswith("verify") else ""
        return f"postgresql://{login}:{password or self._passwords[login]}@{place}?sslmode={mode}{authority}"

    def password(self, login: str) -> str:
        return self._passwords[login]

    def _give(self, source: Path, target: Path) -> None:
        """Copy a file for the server, which may run as another user."""
        shutil.copyfile(source, target)
        owner = self._server.data.stat()
        os.chown(target, owner.st_uid, owner.st_gid)
        target.chmod(0o600)
