"""Shards of a real Redis for tests that call scripts one by one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from sidecar.embedded import EmbeddedRedis
from tests.properties.models.server import ScriptServer
from tests.properties.one_shard import Redis


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    server = ScriptServer(redis_server.url, f"t{secrets.token_hex(6)}")
    yield Redis(server)
    server.close()
