"""Which installation a command talks to: a running ``sidecar dev``, or what the settings name.

Guarantees: ``--state`` wins over SIDECAR_STATE, which wins over the settings; without any of them the ``.sidecar``
            of the working directory is used if a ``sidecar dev`` is running there.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec import Struct

from sidecar import settings
from sidecar.clock import Clock
from sidecar.control.report import ENCODER
from sidecar.errors import SettingsInvalid
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.settings import Settings
from sidecar.state import DevServers, State
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace

DEV_STATE = ".sidecar"
Result = TypeVar("Result")


class Target(Struct, frozen=True):
    """An installation: its settings, its state directory, and its addresses when it is a ``sidecar dev``."""

    settings: Settings
    state: State
    dev: DevServers | None

    @property
    def clock(self) -> Clock:
        """The clock the installation lives by."""
        return Clock(self.state.clock_file) if self.dev is not None else Clock()

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        """Open the ledger; SettingsInvalid when nothing names one."""
        if not self.settings.postgres_dsn:
            raise SettingsInvalid(
                "this command needs the ledger: start `sidecar dev`, name its --state, or set SIDECAR_POSTGRES_DSN"
            )
        opened = await Ledger.open(
            self.settings.postgres_dsn,
            shards=self.settings.shards,
            connections_max=1,
            prepared=not self.settings.pgbouncer,
        )
        try:
            yield opened
        finally:
            await opened.close()

    def store(self, name: str, timeout_ms: int) -> Store:
        """Open Redis; to be closed by the caller."""
        settings = self.settings
        keys = Keyspace(settings.redis_prefix, settings.shards)
        identity = f"{name}-{os.getpid()}"
        return Store(
            settings.redis_url,
            keys,
            self.clock,
            identity=identity,
            timeout_ms=timeout_ms,
            ca_file=settings.redis_ca_file,
            cert_file=settings.redis_cert_file,
            key_file=settings.redis_key_file,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open the ledger for one transaction."""
        async with self.ledger() as ledger, ledger.transaction() as tx:
            yield tx


def find(state: str | None) -> Target:
    """Find the installation; NotFound when a state directory is named in which no ``sidecar dev`` runs."""
    named = state or os.environ.get("SIDECAR_STATE")
    if named:
        return _dev(State(Path(named)))
    default = State(Path(DEV_STATE))
    if (
        not any(name in os.environ for name in ("SIDECAR_POSTGRES_DSN", "SIDECAR_POSTGRES_DSN_FILE"))
        and default.in_use()
    ):
        return _dev(default)
    found = settings.load(os.environ, roles=())
    return Target(found, State(found.state), None)


def _dev(state: State) -> Target:
    servers = state.read_dev()
    found = settings.load(
        os.environ, roles=(), state_dir=str(state.path), redis_url=servers.redis, postgres_dsn=servers.postgres
    )
    return Target(found, state, servers)


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def with_state(command: Decorated) -> Decorated:
    """Give a command the option that names a ``sidecar dev``."""
    option = click.option("--state", metavar="DIR", help="State directory of a running `sidecar dev`.")
    decorated: Decorated = option(command)
    return decorated


def with_json(command: Decorated) -> Decorated:
    """Give a command the option to answer in JSON."""
    decorated: Decorated = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(command)
    return decorated


def wait(work: Coroutine[Any, Any, Result]) -> Result:
    """Run the asynchronous part of a command."""
    return asyncio.run(work)


def actor() -> str:
    """Who is written into the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


def show_json(value: object) -> None:
    """Print one line of JSON; decimals become JSON numbers, exactly."""
    click.echo(ENCODER.encode(value))


def table(rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def parse_json_value(text: str) -> Any:
    """A value as typed: JSON where it is JSON (decimals kept as text, exactly), else the text itself."""
    try:
        return msgspec.json.Decoder(float_hook=str).decode(text)
    except msgspec.DecodeError:
        return text
