"""`sidecar flush`: everything counted before the call is in the ledger when it returns.

Guarantees: what every journal held at the call, also one of a worker that was killed a moment ago, has been seen in the
            ledger. A worker that is being restarted is waited for.
Gives up:   after TIMEOUT_S, or when Redis has been silent for SILENCE_S, with an error; nothing is lost by that, it is
            only not in the ledger yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from pathlib import Path

import click

from sidecar import child
from sidecar.child import Unanswered
from sidecar.cli.target import Target, find, wait, with_state
from sidecar.errors import JournalUnusable, NotFound, StoreUnavailable
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow
from sidecar.signals import end
from sidecar.state import State
from sidecar.usage.recovery import inspect

TIMEOUT_S = 45
SILENCE_S = 8
PING_TIMEOUT_MS = 1_000
RETRY_S = 0.05

# (tenant, metric, scope, period, hour, writer) -> amount, of one shard.
Counted = dict[tuple[str, str, str, int, int, str], int]


@click.command()
@with_state
def flush(state: str | None) -> None:
    """Wait until everything counted before the call is in the ledger, live workers included."""
    wait(flush_everything(find(state)))


async def flush_everything(target: Target) -> None:
    """Have every worker report to Redis and the flusher carry it to Postgres, until the journals are in the ledger."""
    state = target.state
    if not state.in_use():
        raise NotFound(f"no sidecar runs in {state.path}; run this where it runs, or name its --state")
    backoffice = state.ops_socket("backoffice")
    if not backoffice.exists():
        raise NotFound(f"no flusher runs in {state.path}; run this where the role flusher runs")
    counted = _counted(state, target.settings.shards)
    flushing = asyncio.create_task(_until_in_ledger(target, counted))
    watching = asyncio.create_task(_until_silent(target))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait([flushing, watching], return_when=asyncio.FIRST_COMPLETED)
        (flushing if flushing.done() else watching).result()
    except TimeoutError as error:
        raise Unanswered(f"not everything was flushed within {TIMEOUT_S} s; see /readyz for what is away") from error
    finally:
        await end((flushing, watching))


async def _until_in_ledger(target: Target, counted: dict[int, Counted]) -> None:
    state = target.state
    async with target.ledger() as ledger:
        while True:
            await asyncio.gather(*(_insist(socket) for socket in _workers(state)))
            await _insist(state.ops_socket("backoffice"))
            if await _in_ledger(ledger, counted):
                return
            await asyncio.sleep(RETRY_S)


async def _until_silent(target: Target) -> None:
    """Raise StoreUnavailable once Redis has not answered for SILENCE_S: what counts on it would wait in vain."""
    store = target.store("flush", PING_TIMEOUT_MS)
    answered = time.monotonic()
    try:
        while True:
            try:
                await store.marks(0)
                answered = time.monotonic()
            except StoreUnavailable as error:
                if time.monotonic() - answered >= SILENCE_S:
                    raise StoreUnavailable(f"Redis has not answered for {SILENCE_S} s ({error}); mend it") from error
            await asyncio.sleep(RETRY_S)
    finally:
        await store.close()


def _workers(state: State) -> list[Path]:
    return [path for path in sorted(state.path.glob("ops-*.sock")) if path != state.ops_socket("backoffice")]


async def _insist(socket: Path) -> None:
    """Ask until it is done: a worker that was just killed is back in a moment."""
    while True:
        try:
            return await child.flush(socket, TIMEOUT_S)
        except Unanswered:
            await asyncio.sleep(RETRY_S)


def _counted(state: State, shards: int) -> dict[int, Counted]:
    """What all journals hold now, by shard; a file that goes meanwhile goes because the ledger has it."""
    found: dict[int, Counted] = {}
    for path in state.path.rglob("*.journal"):
        with contextlib.suppress(JournalUnusable):
            writer, windows = inspect(path)
            for window in windows:
                key = window.key
                metric, _, scope = key.series.partition("@")
                of_shard = found.setdefault(zlib.crc32(key.tenant.encode()) % shards, {})
                of_shard[key.tenant, metric, scope, key.period, key.hour, writer] = window.value
    return found


async def _in_ledger(ledger: Ledger, counted: dict[int, Counted]) -> bool:
    """Whether the ledger has it all; what it is known to have is taken out of ``counted``."""
    async with ledger.transaction() as tx:
        for shard, wanted in list(counted.items()):
            since_hour = min(key[4] for key in wanted)
            for row in [CounterRow(*row) for row in await tx.rows("recent_counters", shard, since_hour)]:
                key = (row.tenant, row.metric, row.scope, row.period_s, row.hour, row.writer)
                if row.amount >= wanted.get(key, row.amount + 1):
                    del wanted[key]
            if not wanted:
                del counted[shard]
    return not counted
