"""Tenants and keys made through the billing API, and the moment from which sidecars know them.

Guarantees: when a function returns, every sidecar that asks Redis gets the new plan or key; those that know an older
            one hear of the change within a second.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import redis

from sidecar.store.keys import Keyspace
from tests.servers.sidecar_dev import SidecarDev

KEYS = Keyspace()
PROJECTED_S = 15


def put_tenant(dev: SidecarDev, plan: str, tenant: str = "", **fields: Any) -> str:
    """Create a tenant, by default one with a name nobody else uses, or put one on another plan; its name."""
    tenant = tenant or f"{plan}-{secrets.token_hex(4)}"
    row = control(dev, "PUT", f"/api/v1/tenants/{tenant}", {"plan": plan, **fields})
    with redis.Redis.from_url(dev.at.redis) as client:
        _wait(lambda: int(client.hget(KEYS.tenant(tenant), "rev") or -1) >= row["rev"])
    return tenant


def create_key(dev: SidecarDev, tenant: str) -> str:
    """A new API key of a tenant."""
    key = str(control(dev, "POST", f"/api/v1/tenants/{tenant}/keys")["key"])
    with redis.Redis.from_url(dev.at.redis) as client:
        _wait(lambda: bool(client.exists(KEYS.api_key(hashlib.sha256(key.encode()).hexdigest()))))
    return key


def control(dev: SidecarDev, method: str, path: str, body: object = None) -> Any:
    """What the billing API answers; anything but success is an error."""
    headers = {"authorization": f"Bearer {dev.at.admin_token}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(dev.at.control + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROJECTED_S
    while not condition():
        assert time.monotonic() < deadline, f"not in Redis after {PROJECTED_S} s"
        time.sleep(0.01)
