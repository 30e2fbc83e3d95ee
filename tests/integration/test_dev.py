from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from sidecar.cli.catalogue import default_file
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def catalogue(servers_directory: Path) -> Path:
    file = servers_directory / "catalogue.yaml"
    file.write_text(default_file().read_text())
    return file


@pytest.fixture(scope="module")
def dev(servers_directory: Path, catalogue: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "dev", catalogue) as running:
        yield running


def ask(dev: SidecarDev, tenant: str, path: str = "/v1/things", method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"{dev.at.authz}/envoy{path}", method=method, headers={"x-tenant-id": tenant})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["x-quota-status"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-quota-status"]


def eventually(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def control(dev: SidecarDev, method: str, path: str, body: bytes = b"", token: str | None = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {token or dev.at.admin_token}", "content-type": "application/json"}
    request = urllib.request.Request(dev.at.control + path, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_json_line_has_exactly_the_keys_of_the_contract(dev: SidecarDev) -> None:
    line = json.loads((dev.state / "dev.json").read_text())
    assert list(line) == ["authz", "local", "ops", "control", "redis", "postgres", "stripe", "admin_token", "pids"]
    assert list(line["pids"]) == ["authz", "redis", "postgres"]
    assert stat.S_IMODE((dev.state / "dev.json").stat().st_mode) == 0o600


def test_what_was_allowed_is_in_the_ledger_after_a_flush(dev: SidecarDev) -> None:
    dev.put_tenant("counted", "standard")
    for _ in range(7):
        assert ask(dev, "counted")[0] == 200
    assert dev.ledger("counted", "api_calls") == 7
    calls = next(limit for limit in dev.usage("counted")["limits"] if limit["limit"] == "api_calls")
    assert list(calls) == ["limit", "metric", "used", "included", "cap", "period_start", "period_end", "status"]
    assert (calls["used"], calls["included"], calls["status"]) == (7, 100_000, "ok")


def test_a_suspension_and_an_override_reach_the_gateway_within_a_second(dev: SidecarDev) -> None:
    dev.put_tenant("moody", "standard")
    eventually(lambda: ask(dev, "moody") == (200, "ok"), 1)
    dev.cli("tenant", "suspend", "moody")
    eventually(lambda: ask(dev, "moody")[0] == 402, 1)
    dev.cli("tenant", "activate", "moody")
    eventually(lambda: ask(dev, "moody")[0] == 200, 1)
    dev.cli("tenant", "override", "moody", "limits.api_calls.cap", "hard")
    dev.cli("tenant", "override", "moody", "limits.api_calls.included", "1")
    eventually(lambda: ask(dev, "moody")[0] == 429, 1.5)
    dev.cli("tenant", "override", "moody", "limits.api_calls", "--clear")
    eventually(lambda: ask(dev, "moody")[0] == 200, 1.5)


def test_an_override_that_does_not_fit_is_refused(dev: SidecarDev) -> None:
    dev.cli("tenant", "override", "demo-free", "limits.api_cals", "5", status=1)
    dev.cli("tenant", "override", "demo-free", "limits.api_calls", "2.5", status=1)
    assert dev.cli_json("tenant", "show", "demo-free")["overrides"] == {}


def test_a_plan_nobody_has_is_refused(dev: SidecarDev) -> None:
    dev.cli("tenant", "put", "x", "--plan", "fre", status=1)


def test_tenants_are_listed(dev: SidecarDev) -> None:
    names = [row["tenant"] for row in dev.cli_json("tenant", "list")]
    assert {"demo-free", "demo-standard", "demo-enterprise"} <= set(names)
    assert names == sorted(names)


def test_keys_are_listed_without_being_shown(dev: SidecarDev) -> None:
    secret = dev.create_key("demo-standard")
    listed = dev.cli("key", "list", "demo-standard")
    assert secret not in listed
    dev.cli("key", "revoke", secret)
    assert "revoked" in dev.cli("key", "list", "demo-standard")


def test_a_changed_catalogue_is_in_force_and_a_bad_one_is_refused(dev: SidecarDev, catalogue: Path) -> None:
    good = catalogue.read_text()
    revision = dev.cli_json("catalogue", "show")["revision"]
    catalogue.write_text(good.replace("llm_tokens: 10_000", "llm_tokens: 11_000"))
    eventually(lambda: dev.cli_json("catalogue", "show")["revision"] == revision + 1)
    catalogue.write_text(good.replace("api_calls: 1_000", "api_cals: -1"))
    eventually(lambda: "sidecar_catalogue_reload_ok 0.0" in dev.metrics())
    eventually(lambda: "catalogue is refused" in dev.log())
    assert dev.ready()
    assert dev.cli_json("catalogue", "show")["revision"] == revision + 1
    catalogue.write_text(good)
    eventually(lambda: "sidecar_catalogue_reload_ok 1.0" in dev.metrics())


def test_a_catalogue_is_compared_before_it_is_applied(dev: SidecarDev, tmp_path: Path) -> None:
    dearer = tmp_path / "dearer.yaml"
    dearer.write_text(default_file().read_text().replace("price: 499", "price: 599"))
    assert "~ plan enterprise: price 499 -> 599" in dev.cli("catalogue", "diff", str(dearer))


def test_drift_by_a_single_unit_is_listed_and_exits_1(dev: SidecarDev) -> None:
    dev.put_tenant("drifting", "standard")
    for _ in range(3):
        ask(dev, "drifting")
    assert json.loads(dev.cli("verify", "--json")) == []
    with redis.Redis.from_url(dev.at.redis) as client:
        key = next(client.scan_iter("sc:*limit:drifting:api_calls:*"))
        client.hincrby(key, "spent", 1)
        found = json.loads(dev.cli("verify", "--json", status=1))
        assert [(row["tenant"], row["left"], row["right"]) for row in found] == [("drifting", 4, 3)]
        client.hincrby(key, "spent", -1)
    assert json.loads(dev.cli("verify", "--json")) == []


async def test_drift_in_postgres_is_listed(dev: SidecarDev) -> None:
    dev.put_tenant("meddled", "standard")
    ask(dev, "meddled")
    assert dev.ledger("meddled", "api_calls") == 1
    connection = await asyncpg.connect(dev.at.postgres)
    try:
        await connection.execute("update usage_counters set amount = amount + 1 where tenant = 'meddled'")
        found = json.loads(dev.cli("verify", "--json", status=1))
        assert {row["tenant"] for row in found} == {"meddled"}
        assert {(row["left"], row["right"]) for row in found} == {(1, 2)}
        await connection.execute("update usage_counters set amount = amount - 1 where tenant = 'meddled'")
    finally:
        await connection.close()
    assert json.loads(dev.cli("verify", "--json")) == []


def test_the_control_api_needs_the_token(dev: SidecarDev) -> None:
    assert control(dev, "GET", "/api/v1/tenants/demo-free", token="wrong")[0] == 401
    assert control(dev, "GET", "/healthz", token="wrong")[0] == 200


def test_the_control_api_puts_a_tenant_and_makes_a_key_for_it(dev: SidecarDev) -> None:
    assert control(dev, "PUT", "/api/v1/tenants/by-api", b'{"plan": "standard"}')[1]["plan"] == "standard"
    status, made = control(dev, "POST", "/api/v1/tenants/by-api/keys", b'{"name": "ci"}')
    assert status == 201
    assert made["tenant"] == "by-api"
    assert control(dev, "GET", "/api/v1/tenants/by-api/usage")[1]["ledger"] == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/v1/tenants/nobody", b"", 404),
        ("GET", "/api/v1/nothing", b"", 404),
        ("PUT", "/api/v1/tenants/x", b"{", 400),
        ("PUT", "/api/v1/tenants/x", b'{"plan": "free", "colour": 1}', 400),
        ("PUT", "/api/v1/tenants/x", b'{"plan": "gold"}', 404),
        ("PUT", "/api/v1/tenants/%00", b'{"plan": "free"}', 404),
        ("PUT", "/api/v1/catalogue", b"plans: 5", 422),
        ("DELETE", "/api/v1/catalogue", b"", 405),
    ],
)
def test_the_control_api_says_what_was_wrong(dev: SidecarDev, method: str, path: str, body: bytes, status: int) -> None:
    code, answer = control(dev, method, path, body)
    assert code == status
    assert answer["detail"]


def test_a_second_start_on_the_same_state_is_a_clear_error(dev: SidecarDev) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "dev", "--state", str(dev.state)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is in use by process" in done.stderr


def test_a_taken_port_is_a_clear_error_and_leaves_nothing_running(dev: SidecarDev, servers_directory: Path) -> None:
    other = servers_directory / "taken"
    ports = ["--local-port", "0", "--ops-port", "0", "--control-port", "0", "--authz-port", str(dev.authz_port)]
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "dev", "--state", str(other), *ports],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"127.0.0.1:{dev.authz_port} is taken by another process" in done.stderr
    assert not (other / "dev.json").exists()


def test_a_start_after_a_stop_goes_on_with_the_same_state(servers_directory: Path) -> None:
    state = servers_directory / "again"
    with SidecarDev(state) as first:
        for _ in range(5):
            assert ask(first, "demo-free")[0] == 200
        secrets = (state / "secrets.json").read_text()
        pids = [*first.at.pids["authz"], first.at.pids["redis"], first.at.pids["postgres"]]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with SidecarDev(state) as second:
        assert second.ledger("demo-free", "api_calls") == 5
        assert (state / "secrets.json").read_text() == secrets
        second.signal_redis(signal.SIGKILL)
        eventually(lambda: json.loads((state / "dev.json").read_text())["pids"]["redis"] != second.at.pids["redis"])
        eventually(lambda: ask(second, "demo-free")[0] == 200)


def test_the_guide_of_dev_shows_what_to_try(servers_directory: Path) -> None:
    ports = [part for name in ("authz", "local", "ops", "control") for part in (f"--{name}-port", "0")]
    state = servers_directory / "guided"
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "dev", "--state", str(state), *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if " usage demo-free" in line:
                break
        commands = [line.strip() for line in lines if line.startswith("  curl") or " usage demo-free" in line]
        outputs = [
            subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True).stdout
            for command in commands
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    assert outputs[0] == "200 ok\n"
    assert outputs[1].split() == ["79", "200", "ok", "1", "200", "near"]
    assert outputs[2].startswith("HTTP/1.1 403")
    assert "200 grace" in outputs[3]
    assert outputs[5] == "429 denied\n"
    assert outputs[6].startswith("demo-free on plan free\n"), "the last line works as it is printed"
    again = first_lines(state, ports)
    assert "demo-free goes on where it was and has used " in again
    assert "101 of 100 agent_executions" in again


def first_lines(state: Path, options: list[str]) -> str:
    """What `sidecar dev` prints for a person, up to its last line; it is stopped again."""
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "dev", "--state", str(state), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if " usage demo-free" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    return "".join(lines)


def test_what_a_killed_worker_counted_is_in_the_ledger_after_a_flush(dev: SidecarDev) -> None:
    dev.put_tenant("survivor", "standard")
    for _ in range(20):
        assert ask(dev, "survivor")[0] == 200
    pid = json.loads((dev.state / "dev.json").read_text())["pids"]["authz"][0]
    os.kill(pid, signal.SIGKILL)
    assert dev.ledger("survivor", "api_calls") == 20
    assert 'sidecar_restarts_total{kind="authz"} 1.0' in dev.metrics()
    assert json.loads(dev.cli("verify", "--json")) == []


def test_a_killed_dev_leaves_no_process_and_starts_again(servers_directory: Path) -> None:
    state = servers_directory / "killed"
    with SidecarDev(state) as first:
        for _ in range(3):
            assert ask(first, "demo-standard")[0] == 200
        pids = [*first.at.pids["authz"], first.at.pids["redis"], first.at.pids["postgres"]]
        first.stop(signal.SIGKILL)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    with SidecarDev(state) as second:
        assert second.ledger("demo-standard", "api_calls") == 3
