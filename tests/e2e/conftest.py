"""An application, and a client that sends what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.servers.upstream import Upstream


@pytest.fixture(scope="session")
def application() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(application: Upstream) -> Upstream:
    """The application, with nothing received yet."""
    application.received.clear()
    return application


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
