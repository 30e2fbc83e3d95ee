"""From a webhook to the answer of the gateway: a whole `sidecar serve`, every status, within two seconds."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from sidecar.embedded import free_port
from tests.servers.child import Child
from tests.servers.load_client import Answer, LoadClient
from tests.servers.stripe_account import KEY, ScriptedAccount, event

pytestmark = pytest.mark.timeout(180)
TOKEN = "admin-token-of-this-test"
SECRET = "whsec_of_the_running_installation"
WITHIN_S = 2.0
BUSY_S = 1.0  # what a busy machine may add
DAY_S = 86_400
CATALOGUE = """
metrics: {api_calls: {kind: sum}}
plans:
  free: {limits: {api_calls: 100000}}
  standard: {price: 99, limits: {api_calls: 100000}, past_due: {grace: 7d}}
  falling: {price: 99, limits: {api_calls: 100000}, past_due: {grace: 7d, then: free}}
identity: [{header: x-tenant-id}]
default: {costs: {api_calls: 1}}
"""


class Running:
    """One installation, its account, and a gateway that asks."""

    def __init__(self, settings: dict[str, str], account: ScriptedAccount, child: Child) -> None:
        self.account = account
        self.child = child
        self._control = f"http://{settings['SIDECAR_CONTROL_LISTEN']}"
        self._ops = f"http://{settings['SIDECAR_OPS_LISTEN']}"
        self.gateway = LoadClient(int(settings["SIDECAR_AUTHZ_LISTEN"].rpartition(":")[2]), "acme", {})
        self._sent = 0

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._ops}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self._ops}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def api(self, method: str, path: str, body: object = None) -> Any:
        headers = {"authorization": f"Bearer {TOKEN}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._control + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def webhook(self, kind: str, about: dict[str, Any]) -> None:
        self._sent += 1
        body = json.dumps(event(f"evt_{self._sent}", kind, about))
        headers = {"stripe-signature": stripe.WebhookSignature.generate_signature_header(body, SECRET)}
        request = urllib.request.Request(f"{self._control}/webhooks/stripe", body.encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    async def subscription_is(self, status: str, plan: str = "standard", **more: Any) -> None:
        self.account.subscription("sub_1", "cus_1", plan, status, **more)
        about = self.account.objects["sub_1"]
        await asyncio.to_thread(self.webhook, "customer.subscription.updated", about)

    async def answers(self, status: int, plan: str, mark: str) -> None:
        """The gateway hears this within two seconds."""
        deadline = time.monotonic() + WITHIN_S + BUSY_S
        found: Answer | None = None
        while time.monotonic() < deadline:
            found = await self.gateway.decided("/v1/things")
            if (found.status, found.mark) == (status, mark) and found.header("x-quota-plan") in (plan, ""):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{found}\n{self.child.tail()}")


@pytest.fixture
async def running(redis_url: str, database: str, tmp_path: Path) -> AsyncIterator[Running]:
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(CATALOGUE)
    async with ScriptedAccount() as account:
        settings = {
            "SIDECAR_STATE_DIR": str(tmp_path / "state"),
            "SIDECAR_REDIS_URL": redis_url,
            "SIDECAR_POSTGRES_DSN": database,
            "SIDECAR_CATALOGUE_FILE": str(catalogue),
            "SIDECAR_ADMIN_TOKENS": TOKEN,
            "SIDECAR_STRIPE_KEY": KEY,
            "SIDECAR_STRIPE_URL": account.url,
            "SIDECAR_STRIPE_WEBHOOK_SECRETS": SECRET,
            "SIDECAR_AUTHZ_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_LOCAL_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_OPS_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_CONTROL_LISTEN": f"127.0.0.1:{free_port()}",
        }
        child = await asyncio.to_thread(
            Child, [sys.executable, "-m", "sidecar", "serve", "--role", "all", "--workers", "1"], env=settings
        )
        found = Running(settings, account, child)
        deadline = time.monotonic() + 40
        while not await asyncio.to_thread(found.ready):
            assert time.monotonic() < deadline, child.tail()
            await asyncio.sleep(0.05)
        yield found
        await found.gateway.close()
        await asyncio.to_thread(child.stop, signal.SIGTERM, 30)


async def test_every_status_reaches_the_gateway_within_two_seconds_of_its_webhook(running: Running) -> None:
    await asyncio.to_thread(running.api, "PUT", "/api/v1/tenants/acme", {"plan": "free"})
    running.account.customer("cus_1", "acme")
    now_s = int(time.time())
    await running.subscription_is("active")
    await running.answers(200, "standard", "ok")
    await running.subscription_is("unpaid")
    await running.answers(402, "standard", "denied")
    await running.subscription_is("active")
    await running.answers(200, "standard", "ok")
    await running.subscription_is("canceled", ended_at=now_s)
    await running.answers(402, "standard", "denied")
    await running.subscription_is("trialing", trial_end=now_s + DAY_S)
    await running.answers(200, "standard", "ok")
    await running.subscription_is("trialing", trial_end=now_s - DAY_S)
    await running.answers(402, "standard", "denied")
    await running.subscription_is("active", "falling")
    await running.answers(200, "falling", "ok")
    await running.subscription_is("paused", "falling")
    await running.answers(402, "falling", "denied")

    # Past due: within the grace allowed and marked; beyond it suspended, or on the plan the catalogue names.
    running.account.invoice("in_1", "cus_1", "sub_1", "open", status_transitions={"finalized_at": now_s})
    await asyncio.to_thread(running.webhook, "invoice.payment_failed", running.account.objects["in_1"])
    await running.subscription_is("past_due", "falling")
    await running.answers(200, "falling", "grace")
    running.account.invoice("in_1", "cus_1", "sub_1", "open", status_transitions={"finalized_at": now_s - 8 * DAY_S})
    await asyncio.to_thread(running.webhook, "invoice.payment_failed", running.account.objects["in_1"])
    await running.answers(200, "free", "ok")
    await running.subscription_is("past_due", "standard")
    await running.answers(402, "standard", "denied")

    # Paid: restored at once.
    running.account.invoice("in_1", "cus_1", "sub_1", "paid")
    await asyncio.to_thread(running.webhook, "invoice.paid", running.account.objects["in_1"])
    await running.subscription_is("active", "standard")
    await running.answers(200, "standard", "ok")

    listed = await asyncio.to_thread(running.api, "GET", "/api/v1/tenants/acme/invoices?status=paid")
    assert [invoice["id"] for invoice in listed["invoices"]] == ["in_1"]
    metrics = await asyncio.to_thread(running.metrics)
    assert 'sidecar_webhooks_total{outcome="received"}' in metrics
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in metrics
        assert secret not in "\n".join([*running.child.out, *running.child.err])
