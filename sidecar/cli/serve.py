"""`sidecar serve`: every process of an installation under one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar import logs, memory, settings
from sidecar.settings import Settings
from sidecar.signals import Stop, end
from sidecar.state import State
from sidecar.supervisor import Supervisor

if TYPE_CHECKING:
    from sidecar.control.catalogue_file import CatalogueFile

log = logging.getLogger(__name__)


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
    if os.environ.get("SIDECAR_STATE"):
        log.warning(
            "SIDECAR_STATE is not for serve, which keeps its state elsewhere",
            extra=logs.fields(state_dir=found.state_dir, remedy="unset it; SIDECAR_STATE_DIR is the one of serve"),
        )
    asyncio.run(_serve(found))


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
                memory.settle()
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
    from sidecar.control.catalogue_file import CatalogueFile  # noqa: PLC0415 - a sidecar in a pod never needs them
    from sidecar.ledger.connection import Ledger  # noqa: PLC0415 - the same

    ledger = await Ledger.open(found.postgres_dsn, shards=found.shards, connections_max=1, prepared=not found.pgbouncer)
    file = CatalogueFile(Path(found.catalogue_file), ledger)
    await file.look()
    watching = asyncio.create_task(file.watch())
    try:
        yield file
    finally:
        await end([watching])
        await ledger.close()
