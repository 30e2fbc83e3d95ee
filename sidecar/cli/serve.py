"""`sidecar serve`, and the hidden commands by which the supervisor starts its children."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import click

from sidecar import child, logs, settings
from sidecar.control.catalogue_file import CatalogueFile
from sidecar.ledger.connection import Ledger
from sidecar.settings import ROLES, Settings
from sidecar.signals import Stop
from sidecar.state import State
from sidecar.supervisor import Supervisor


@click.command()
@click.option("--role", "roles", metavar="ROLES", help="authz, flusher, control (several with commas), or all.")
@click.option("--workers", type=int, help="Authz processes that share the listeners.")
def serve(roles: str | None, workers: int | None) -> None:
    """Run in production; everything else comes from SIDECAR_* settings."""
    overrides: dict[str, object] = {}
    if roles is not None:
        overrides["roles"] = tuple(role.strip() for role in roles.split(",") if role.strip())
    if workers is not None:
        overrides["workers"] = workers
    found = settings.load(os.environ, **overrides)
    logs.configure(found.log_level, "supervisor")
    asyncio.run(_serve(found))


@click.command(hidden=True)
@click.option("--index", type=int, required=True)
@click.option("--parent", type=int, required=True)
@click.option("--ready-fd", type=int, required=True)
def worker(index: int, parent: int, ready_fd: int) -> None:
    """Decide for gateways; started by the supervisor."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, f"authz-{index}")
    from sidecar.app import run_worker  # noqa: PLC0415 - not before the parent's death can be noticed

    run_worker(found, index)


@click.command(hidden=True)
@click.option("--index", type=int, required=True)
@click.option("--parent", type=int, required=True)
@click.option("--ready-fd", type=int, required=True)
def backoffice(index: int, parent: int, ready_fd: int) -> None:  # noqa: ARG001 - there is one
    """Flush and serve the billing API; started by the supervisor."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, "backoffice")
    from sidecar.app import run_backoffice  # noqa: PLC0415 - the same

    run_backoffice(found, tuple(role for role in ROLES if role != "authz" and found.has_role(role)))


async def _serve(found: Settings) -> None:
    state = State(found.state)
    state.claim()
    try:
        with Stop() as stop:
            async with _catalogue_file(found) as file:
                supervisor = Supervisor(found, state, catalogue_file=None if file is None else file.component)
                stop.insist_with(supervisor.kill)
                if not await stop.unless(supervisor.start()):
                    return
                try:
                    await stop.wait()
                finally:
                    await supervisor.stop()
    finally:
        state.release()


@contextlib.asynccontextmanager
async def _catalogue_file(found: Settings) -> AsyncIterator[CatalogueFile | None]:
    """Watch the catalogue file, where the settings name one and this program has the ledger to apply it to."""
    if not found.catalogue_file or not (found.has_role("flusher") or found.has_role("control")):
        yield None
        return
    ledger = await Ledger.open(found.postgres_dsn, shards=found.shards, connections_max=1, prepared=not found.pgbouncer)
    file = CatalogueFile(Path(found.catalogue_file), ledger)
    await file.look()
    watching = asyncio.create_task(file.watch())
    try:
        yield file
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await ledger.close()
