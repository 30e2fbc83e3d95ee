from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient, TestServer

from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.embedded import free_port
from sidecar.ledger.connection import Ledger

TOKEN = "admin-token-of-this-test"


async def test_while_postgres_is_away_the_answer_is_503_with_a_time_to_come_back() -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with client.get("/api/v1/tenants/acme", headers=headers) as answer:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.content_type == "application/problem+json"
        async with client.get("/healthz") as answer:
            assert answer.status == 200
    await ledger.close()


async def test_any_of_several_tokens_is_good_while_one_is_replaced() -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    app = control_app(ledger, (TOKEN, TOKEN + "-new"), Clock())
    async with TestClient(TestServer(app)) as client:
        for token, status in ((TOKEN, 503), (TOKEN + "-new", 503), (TOKEN + "-old", 401), ("", 401)):
            async with client.get("/api/v1/tenants/acme", headers={"authorization": f"Bearer {token}"}) as answer:
                assert answer.status == status
    await ledger.close()


async def test_a_method_that_a_path_does_not_take_is_told_which_it_takes() -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with client.delete("/api/v1/tenants/acme", headers=headers) as answer:
            assert answer.status == 405
            assert answer.headers["allow"] == "GET, HEAD, PUT"
            assert "GET, HEAD, PUT" in (await answer.json())["detail"]
    await ledger.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/v1/tenants/acme"),
        ("POST", "/api/v1/tenants/acme/keys"),
    ],
)
@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b'{"plan": "\xff"}', b"{", b"[]", b'{"overrides": {"a": ' + b"[" * 2_000]
)
async def test_a_body_that_is_no_json_is_refused_with_what_would_be_right(method: str, path: str, body: bytes) -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with client.request(method, path, data=body, headers=headers) as answer:
            assert answer.status == 400
            assert (await answer.json())["detail"].endswith("send JSON with the documented fields")
    await ledger.close()


async def test_a_catalogue_that_is_no_utf_8_is_refused_with_its_place() -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with client.put("/api/v1/catalogue", data=b"plans: \xff", headers=headers) as answer:
            assert answer.status == 422
            assert "byte 7 is no UTF-8" in (await answer.json())["detail"]
    await ledger.close()
