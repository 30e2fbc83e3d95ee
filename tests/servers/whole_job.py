"""The whole program in its own processes, against any Redis: limits, counts, changes, verify.

Guarantees: what it asserts is what an operator is promised, through the decision listener and the command line only.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from sidecar.embedded.port import free_port
from tests.servers.child import Child
from tests.servers.load_client import LoadClient, Tally, Traffic, crowd

CAP = 40
LARGE_CAP = 3_000
CATALOGUE = f"""
upgrade_url: https://example.com/upgrade
identity:
  - header: x-tenant-id
  - api_key: x-api-key
metrics:
  api_calls: {{}}
plans:
  small:
    limits:
      api_calls: {{included: {CAP}, period: month, cap: hard}}
  medium:
    limits:
      api_calls: {{included: {2 * CAP}, period: month, cap: hard}}
  large:
    limits:
      api_calls: {{included: {LARGE_CAP}, period: month, cap: hard}}
  open:
    limits:
      api_calls: {{included: 1_000_000, period: month, cap: soft}}
"""
# A restore holds for so long; what is promised does not depend on it.
RECLAIM_AFTER_MS = 3_000
READY_S = 40
COMMAND_S = 60
ENDS_S = 30
LEDGERS = ("SIDECAR_POSTGRES_DSN", "SIDECAR_CATALOGUE_FILE")


class Job:
    """`sidecar serve` once for all roles, or once for each of ``parts``: roles, and the settings that are theirs alone.

    ``database`` is that of the one program, and of the commands in any case. A part without a database of its own has
    none.
    """

    def __init__(
        self,
        url: str,
        database: str,
        directory: Path,
        *,
        parts: Mapping[str, Mapping[str, str]] | None = None,
        text: str = CATALOGUE,
        **settings: str,
    ) -> None:
        catalogue = directory / "catalogue.yaml"
        catalogue.write_text(text)
        self.token = secrets.token_hex(16)
        self.ports = {name: free_port() for name in ("AUTHZ", "LOCAL", "OPS", "CONTROL")}
        self._environment = {
            "SIDECAR_STATE_DIR": str(directory / "state"),
            "SIDECAR_REDIS_URL": url,
            "SIDECAR_POSTGRES_DSN": database,
            "SIDECAR_CATALOGUE_FILE": str(catalogue),
            "SIDECAR_ADMIN_TOKENS": self.token,
            "SIDECAR_RECLAIM_AFTER_MS": str(RECLAIM_AFTER_MS),
            "SIDECAR_LEASE_TTL_MS": "2000",
            **{f"SIDECAR_{name}_LISTEN": f"127.0.0.1:{port}" for name, port in self.ports.items()},
            **settings,
        }
        self._parts = dict(parts or {})
        self.children: list[Child] = []

    def start(self) -> None:
        if not self._parts:
            self._serve("all", self._environment)
        shared = {name: value for name, value in self._environment.items() if name not in LEDGERS}
        for roles, own in self._parts.items():
            apart = {
                # Short, for sockets lie inside it and their paths have a bound.
                "SIDECAR_STATE_DIR": f"{self._environment['SIDECAR_STATE_DIR']}{len(self.children)}",
                "SIDECAR_OPS_LISTEN": f"127.0.0.1:{free_port()}",
            }
            # Commands find workers in their state directory, and readiness at their address.
            self._serve(roles, {**shared, **({} if roles == "authz" else apart), **own})

    def _serve(self, roles: str, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "sidecar", "serve", "--role", roles]
        self.children.append(Child(command, env=environment))

    def stop(self) -> list[int]:
        """Authz first, so that what it reports last is still carried."""
        return [child.stop(signal.SIGTERM, ENDS_S) for child in reversed(self.children)]

    async def ready(self) -> None:
        """Wait until it decides."""
        await self.until(self._ready, READY_S)

    async def until(self, condition: Any, within_s: float) -> None:
        """Wait for a condition that may block."""
        deadline = time.monotonic() + within_s
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, self.tail()
            assert all(child.running() for child in self.children), self.tail()
            await asyncio.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['OPS']}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def tail(self) -> str:
        return "\n".join(child.tail() for child in self.children)

    async def cli(self, *args: str, status: int = 0, settings: Mapping[str, str] | None = None) -> str:
        """Run a command with the same settings, or with some of its own."""
        return await asyncio.to_thread(self._cli, args, status, settings or {})

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """One call of the billing API that succeeds."""
        url, headers = f"http://127.0.0.1:{self.ports['CONTROL']}{path}", {"authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, json=body, headers=headers) as answer,
        ):
            said = await answer.text()
            assert answer.status < 300, f"{method} {path}: {answer.status} {said}\n{self.tail()}"
            return json.loads(said)

    def _cli(self, args: tuple[str, ...], status: int, settings: Mapping[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *args],
            env={**self._environment, **settings},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        said = f"sidecar {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == status, f"{said}\n{self.tail()}"
        return done.stdout

    async def put(self, tenants: list[str], plan: str) -> None:
        for tenant in tenants:
            await self.cli("tenant", "put", tenant, "--plan", plan)

    async def counted(self, tenant: str) -> int:
        """What the ledger has of a tenant."""
        return int(json.loads(await self.cli("usage", tenant, "--json"))["ledger"].get("api_calls", 0))

    async def in_ledger(self, tenant: str, amount: int, within_s: float = 20) -> None:
        """Wait until the ledger has what was counted; it never has more."""
        deadline = time.monotonic() + within_s
        while (found := await self.counted(tenant)) != amount:
            assert found < amount, f"{tenant}: the ledger has {found}, {amount} were allowed"
            assert time.monotonic() < deadline, f"{tenant}: {found} of {amount}\n{self.tail()}"

    async def verify(self) -> None:
        """No difference between journals, Redis and the ledger."""
        assert json.loads(await self.cli("verify", "--json")) == []

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


async def spent_out(client: LoadClient, tally: Tally) -> bool:
    """A turn of a client that asks until its tenant's cap is reached."""
    answer = await client.decided()
    tally.add(answer)
    return answer.allowed


async def do_the_whole_job(job: Job, tenants: list[str]) -> None:
    """Hard caps to the last unit, every count in the ledger, a change within a second, keys, verify without a word."""
    await job.ready()
    await job.put(tenants, "small")
    key = json.loads(await job.cli("key", "create", tenants[0], "--json"))["key"]
    port = job.ports["AUTHZ"]
    for tenant in tenants:
        tally = await crowd(port, 4, [tenant], spent_out)
        assert tally.allowed == CAP, tally.reasons
    for tenant in tenants:
        await job.in_ledger(tenant, CAP)
    async with LoadClient(port, tenants[0]) as client:
        assert (await client.decided()).status == 429
        await job.cli("tenant", "put", tenants[0], "--plan", "medium")
        changed = time.monotonic()
        while not (await client.decided()).allowed:
            assert time.monotonic() < changed + 5, job.tail()  # a second, on a machine that does nothing else
            await asyncio.sleep(0.02)
    async with LoadClient(port, headers={"x-api-key": key}) as client:
        assert (await client.decided()).allowed
    await job.in_ledger(tenants[0], CAP + 2)
    await job.verify()


async def lose_everything(job: Job, tenant: str) -> None:
    """After Redis lost its state: the cap stays spent, keys and plans come back, and nothing differs."""
    port = job.ports["AUTHZ"]
    counted = await job.counted(tenant)
    assert counted > 0
    async with LoadClient(port, tenant) as client:
        # A lease that is still in hand may be spent; then the restored data set says how much is left.
        tally = await crowd(port, 2, [tenant], spent_out)
        assert counted + tally.allowed == 2 * CAP, tally.reasons
        assert (await client.decided()).status == 429
    await job.in_ledger(tenant, 2 * CAP)
    await job.verify()


async def stay_exact(job: Job, capped: str, soft: str, trouble: Callable[[Tally], Awaitable[object]]) -> None:
    """Traffic goes on in trouble: the hard cap ends at its last unit, the soft one never waits, all is counted."""
    await job.ready()
    await job.put([capped], "large")
    await job.put([soft], "open")
    await job.cli("flush")  # the worker has heard of them
    port = job.ports["AUTHZ"]
    for tenant in (capped, soft):
        async with LoadClient(port, tenant) as client:
            assert (await client.decided()).allowed
    hard, open_ended = Tally(), Tally()
    async with Traffic(port, [capped], clients=4, rate_per_s=100) as one, Traffic(port, [soft], clients=4) as other:
        hard, open_ended = one.tally, other.tally
        await one.reached(200)
        await trouble(hard)
        await other.reached(200)
        await one.reached(50, 40)  # units are granted again
    await crowd(port, 4, [capped], spent_out, hard)
    assert hard.allowed + 1 == LARGE_CAP, hard.reasons
    assert set(open_ended.reasons) == {"allowed"}, open_ended.reasons
    assert hard.lost + open_ended.lost == 0
    await job.in_ledger(capped, LARGE_CAP)
    await job.in_ledger(soft, open_ended.allowed + 1)
    await job.verify()
