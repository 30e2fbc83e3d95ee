"""What a process says of itself when it is asked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sidecar.clock import Clock
from sidecar.embedded.port import free_port
from sidecar.errors import StoreUnavailable
from sidecar.settings import Settings
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import CoreCounters
from sidecar.worker import Worker


async def test_a_reading_tells_of_the_moment_in_which_it_is_asked_for(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    store = Store(f"redis://127.0.0.1:{free_port()}/0", Keyspace(), clock, identity="w", timeout_ms=5_000)
    worker = Worker(Settings(state_dir=str(tmp_path)), store, clock, CoreCounters())
    assert (await worker.reading())["sidecar_breaker_open"] == {(): [0]}
    for _ in range(3):
        with contextlib.suppress(StoreUnavailable):
            await store.catalogue()
    assert (await worker.reading())["sidecar_breaker_open"] == {(): [1]}
    assert (await worker.reading())["sidecar_store_errors_total"] == {("hmget",): [3]}
    await worker.core.abandon()
    await store.close()
