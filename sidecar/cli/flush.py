"""`sidecar flush`: everything counted before the call is in the ledger when it returns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from sidecar import child
from sidecar.child import Unanswered
from sidecar.cli.target import Target, find, wait, with_state
from sidecar.errors import NotFound
from sidecar.state import State

TIMEOUT_S = 45
RETRY_S = 0.05


@click.command()
@with_state
def flush(state: str | None) -> None:
    """Wait until everything counted before the call is in the ledger, live workers included."""
    wait(flush_everything(find(state)))


async def flush_everything(target: Target) -> None:
    """Have every worker report to Redis, then the flusher carry it to Postgres."""
    state = target.state
    if not state.in_use():
        raise NotFound(f"no sidecar runs in {state.path}; run this where it runs, or name its --state")
    backoffice = state.ops_socket("backoffice")
    if not backoffice.exists():
        raise NotFound(f"no flusher runs in {state.path}; run this where the role flusher runs")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(_insist(socket) for socket in _workers(state)))
            await _insist(backoffice)
    except TimeoutError as error:
        raise Unanswered(f"not everything was flushed within {TIMEOUT_S} s; see /readyz for what is away") from error


def _workers(state: State) -> list[Path]:
    return [path for path in sorted(state.path.glob("ops-*.sock")) if path != state.ops_socket("backoffice")]


async def _insist(socket: Path) -> None:
    """Ask until it is done: a worker that was just killed is back in a moment and has its journal adopted."""
    while True:
        try:
            return await child.flush(socket, TIMEOUT_S)
        except Unanswered:
            await asyncio.sleep(RETRY_S)
