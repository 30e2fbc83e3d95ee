"""An application, and a client that sends what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.e2e.gateways import GATEWAYS, Gateway
from tests.e2e.scripted import ScriptedSidecar
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


@pytest.fixture(scope="module", params=GATEWAYS)
def scripted_gateway(
    request: pytest.FixtureRequest, application: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, ScriptedSidecar]]:
    """Each gateway as shipped, in front of the application and of a sidecar that follows a script."""
    with ScriptedSidecar() as sidecar:
        started = GATEWAYS[request.param](
            tmp_path_factory.mktemp(request.param), authz_port=sidecar.port, upstream_port=application.port
        )
        started.start()
        yield started, sidecar
        started.stop()
