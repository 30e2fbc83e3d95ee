"""The Envoy configuration inside the manifest, taken out and run with traffic."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.e2e.gateways import ENVOY, ROOT, Envoy
from tests.e2e.scripted import ScriptedSidecar
from tests.servers.upstream import Upstream


def configuration() -> str:
    manifest: dict[str, Any] = yaml.safe_load((ROOT / "k8s" / "envoy-config.yaml").read_text())
    return str(manifest["data"]["envoy.yaml"])


def test_envoy_accepts_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(configuration())
    checked = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", path], capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "OK" in checked.stdout + checked.stderr


async def test_it_enforces(upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    with ScriptedSidecar() as sidecar:
        gateway = Envoy(tmp_path, authz_port=sidecar.port, upstream_port=upstream.port)
        gateway.run_text(configuration())
        try:
            for key, status in (("good", 200), ("over", 429), ("nobody", 401)):
                async with client.get(gateway.url, headers={"x-api-key": key}) as answer:
                    assert answer.status == status
            assert len(upstream.received) == 1
        finally:
            gateway.stop()
