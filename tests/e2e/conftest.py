"""An application, and a client that sends what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.e2e.gateways import GATEWAYS, Gateway
from tests.e2e.scripted import Script, ScriptedSidecar
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


@pytest.fixture(scope="module")
def sidecar() -> Iterator[ScriptedSidecar]:
    """A sidecar that follows a script."""
    with ScriptedSidecar() as scripted:
        yield scripted


@pytest.fixture(scope="module", params=GATEWAYS)
def gateway(
    request: pytest.FixtureRequest,
    sidecar: ScriptedSidecar,
    application: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """Each gateway as shipped, in front of the application and of that sidecar."""
    started = GATEWAYS[request.param](
        tmp_path_factory.mktemp(request.param), authz_port=sidecar.port, upstream_port=application.port
    )
    started.start()
    yield started
    started.stop()


@pytest.fixture
def script(sidecar: ScriptedSidecar) -> Script:
    """What that sidecar follows, with nothing asked yet."""
    sidecar.script.reset()
    return sidecar.script
