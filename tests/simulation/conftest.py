"""What every test that simulates needs."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes that are killed leave coroutines behind, which must not be taken for leaks of this test."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _about: None)
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.disable()
    yield
    gc.unfreeze()
    # Their last steps run here, without a loop; asyncio would make one for them that nobody closes.
    asyncio.set_event_loop(None)
    gc.collect()
    gc.enable()
    logging.disable(logging.NOTSET)
