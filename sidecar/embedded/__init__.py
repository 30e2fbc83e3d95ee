"""Real Redis and Postgres on this machine, and a stand-in for Stripe, for `sidecar dev` and the tests."""

from __future__ import annotations

from sidecar.embedded.port import free_port
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "free_port"]
