"""How `sidecar flush` ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar import signals
from sidecar.cli import flush


async def test_it_ends_though_the_driver_took_its_end_for_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """redis-py returns from a connect that is cancelled, and the look for a silent Redis went on for good."""
    asked = asyncio.Event()

    async def watching(_target: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asked.set()
        await asyncio.Event().wait()

    async def in_ledger(_target: Any, _counted: Any) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(signals, "END_AGAIN_S", 0.01)
    monkeypatch.setattr(flush, "_until_silent", watching)
    monkeypatch.setattr(flush, "_until_in_ledger", in_ledger)
    state = SimpleNamespace(path=tmp_path, in_use=lambda: True, ops_socket=lambda _name: tmp_path)
    target: Any = SimpleNamespace(state=state, settings=SimpleNamespace(shards=1))
    async with asyncio.timeout(10):
        await flush.flush_everything(target)
    assert asked.is_set()
