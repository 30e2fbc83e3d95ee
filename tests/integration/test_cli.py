"""Every command once on a running `sidecar dev`: the shape of its JSON, and one input each that it refuses.

What the commands do to traffic is in test_main_changes.py; `stripe` comes with its own tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis

from sidecar.cli.catalogue import default_file
from tests.servers.accounts import put_tenant
from tests.servers.load_client import LoadClient
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CALLS = 7


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "commands", workers=2) as running:
        yield running


@pytest.fixture
async def tenant(dev: SidecarDev) -> str:
    """A tenant that has made CALLS calls, which are in the ledger."""
    name = put_tenant(dev, "standard")
    async with LoadClient(dev.authz_port, name) as client:
        for _ in range(CALLS):
            assert (await client.decided()).allowed
    dev.cli("flush")
    return name


def run(dev: SidecarDev, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIDECAR_STATE": str(dev.state)}
    command = [sys.executable, "-m", "sidecar", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)


def refused(dev: SidecarDev, *args: str, status: int = 1) -> str:
    """What a command says on stderr that ends with this status; never a traceback."""
    done = run(dev, *args)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_check_prints_every_error_with_its_line(dev: SidecarDev, tmp_path: Path) -> None:
    assert "valid; 5 metrics" in dev.cli("check", str(default_file()))
    file = tmp_path / "bad.yaml"
    file.write_text(
        default_file().read_text().replace("api_calls: 1_000", "api_cals: 1_000").replace("price: 99", "price: -1")
    )
    told = refused(dev, "check", str(file))
    assert len(told.splitlines()) == 2
    assert all(line.startswith(f"sidecar: {file}:") for line in told.splitlines())
    assert "api_calls" in told
    assert "cannot be read" in refused(dev, "check", str(tmp_path / "none.yaml"))


def test_migrate_twice_changes_nothing_and_needs_a_ledger(dev: SidecarDev) -> None:
    dev.cli("migrate")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "migrate"],
        env=environment,
        cwd=dev.state.parent,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 2
    assert "SIDECAR_POSTGRES_DSN" in done.stderr


def test_catalogues_are_shown_compared_and_applied(dev: SidecarDev, tmp_path: Path) -> None:
    shown = dev.cli_json("catalogue", "show")
    assert shown["document"] == default_file().read_text()
    dearer = tmp_path / "dearer.yaml"
    dearer.write_text(shown["document"].replace("price: 499", "price: 599"))
    compared = dev.cli_json("catalogue", "diff", str(dearer))
    assert compared == {"revision": shown["revision"], "changes": ["~ plan enterprise: price 499 -> 599"]}
    applied = dev.cli_json("catalogue", "apply", str(dearer))
    assert applied["revision"] == shown["revision"] + 1
    assert dev.cli_json("catalogue", "show", "--revision", str(shown["revision"]))["document"] == shown["document"]
    doubtful = tmp_path / "doubtful.yaml"
    doubtful.write_text(
        "identity: [{header: x}]\nmetrics: {calls: }\nplans: {a: {limits: {calls: 1}}}\n"
        "routes: [{name: dear, match: /dear, costs: {calls: 2}}]\n"
    )
    applying = run(dev, "catalogue", "apply", str(doubtful))
    assert applying.returncode == 0
    assert f"{doubtful}: doubtful: route dear" in applying.stderr
    dev.cli("catalogue", "apply", str(default_file()))
    bad = tmp_path / "bad.yaml"
    bad.write_text("plans: 5\n")
    assert f"{bad}:1" in refused(dev, "catalogue", "apply", str(bad))
    assert "no" in refused(dev, "catalogue", "show", "--revision", "999")
    assert dev.cli_json("catalogue", "show")["document"] == shown["document"]


def test_tenants_are_put_shown_and_listed(dev: SidecarDev) -> None:
    made = dev.cli_json("tenant", "put", "acme", "--plan", "free", "--anchor", "2024-01-31")
    assert (made["tenant"], made["plan"], made["status"], made["anchor_s"]) == ("acme", "free", "active", 1_706_659_200)
    assert dev.cli_json("tenant", "put", "acme", "--plan", "standard")["anchor_s"] == 1_706_659_200
    assert dev.cli_json("tenant", "show", "acme")["plan"] == "standard"
    listed = {row["tenant"]: row["plan"] for row in dev.cli_json("tenant", "list")}
    assert listed["acme"] == "standard"
    assert listed["demo-free"] == "free"
    assert 'did you mean "free"' in refused(dev, "tenant", "put", "acme", "--plan", "fre")
    assert "nobody" in refused(dev, "tenant", "show", "nobody")
    assert "--plan" in refused(dev, "tenant", "put", "acme", status=2)
    assert "parent" in refused(dev, "tenant", "put", "acme", "--plan", "free", "--parent", "acme")


def test_a_key_is_shown_once_and_kept_as_its_hash(dev: SidecarDev) -> None:
    made = dev.cli_json("key", "create", "demo-free")
    assert set(made) == {"key", "sha256", "tenant"}
    assert made["key"] not in dev.cli("key", "list", "demo-free", "--json")
    assert dev.cli("key", "create", "demo-free").strip() != made["key"]
    assert "nobody" in refused(dev, "key", "create", "nobody")
    assert "key" in refused(dev, "key", "revoke", "ffffffffffffffff")


def test_usage_has_the_shape_of_the_contract(dev: SidecarDev, tenant: str) -> None:
    usage = dev.cli_json("usage", tenant)
    assert list(usage) == ["tenant", "plan", "limits", "ledger"]
    assert (usage["tenant"], usage["plan"], usage["ledger"]) == (tenant, "standard", {"api_calls": CALLS})
    calls = next(limit for limit in usage["limits"] if limit["limit"] == "api_calls")
    keys = ["limit", "metric", "used", "included", "cap", "period_start", "period_end", "status"]
    assert list(calls) == keys
    assert (calls["used"], calls["included"], calls["cap"], calls["status"]) == (CALLS, 100_000, "soft", "ok")
    assert calls["period_start"] < calls["period_end"]
    assert "nobody" in refused(dev, "usage", "nobody")


def test_a_price_is_exact_to_the_cent(dev: SidecarDev) -> None:
    usage = ["llm_tokens=1500000", "agent_executions=5500", "api_calls=120000", "storage_gb=105", "user_seats=27"]
    assert dev.cli_json("price", "standard", *usage) == {
        "base": "99.00",
        "overage": {
            "llm_tokens": "5.00",
            "agent_executions": "50.00",
            "api_calls": "20.00",
            "storage_gb": "2.50",
            "user_seats": "10.00",
        },
        "total": "186.50",
    }
    assert 'did you mean "api_calls"' in refused(dev, "price", "standard", "api_cals=1")
    assert "METRIC=AMOUNT" in refused(dev, "price", "standard", "api_calls", status=2)
    refused(dev, "price", "standard", "api_calls=1.5")
    refused(dev, "price", "standard", "api_calls=-1")


async def test_verify_lists_a_difference_of_one_wherever_it_is(dev: SidecarDev, tenant: str) -> None:
    assert dev.cli_json("verify") == []
    change = "update {} set amount = amount + $2 where tenant = $1 and metric = 'api_calls'"
    connection = await asyncpg.connect(dev.at.postgres)
    with redis.Redis.from_url(dev.at.redis) as client:
        window = next(iter(client.scan_iter(f"sc:*window:{tenant}:api_calls:*")))
        writer = next(name for name in client.hkeys(window) if name not in (b"v", b"t"))
        limit = next(iter(client.scan_iter(f"sc:*limit:{tenant}:api_calls:*")))
        # A writer's window and what a limit has spent in Redis, and a total in Postgres.
        client.hincrby(window, writer, 1)
        client.hincrby(limit, "spent", -1)
        await connection.execute(change.format("usage_windows"), tenant, 2)
        drift = dev.cli_json("verify", status=1)
        assert {row["tenant"] for row in drift} == {tenant}
        assert {(row["left_name"], row["left"], row["right_name"], row["right"]) for row in drift} == {
            ("Redis", CALLS + 1, "ledger", CALLS),
            ("Redis spent", CALLS - 1, "ledger", CALLS),
            ("total", CALLS + 2, "counters", CALLS),
        }
        client.hincrby(window, writer, -1)
        client.hincrby(limit, "spent", 1)
        await connection.execute(change.format("usage_windows"), tenant, -2)
    # What one writer counted, as the ledger has it.
    await connection.execute(change.format("usage_counters"), tenant, 1)
    drift = dev.cli_json("verify", status=1)
    assert {("Redis", CALLS, "ledger", CALLS + 1), ("journal", CALLS, "ledger", CALLS + 1)} <= {
        (row["left_name"], row["left"], row["right_name"], row["right"]) for row in drift
    }
    await connection.execute(change.format("usage_counters"), tenant, -1)
    await connection.close()
    assert dev.cli_json("verify") == []


def test_journals_of_living_workers_can_be_looked_into(dev: SidecarDev, tenant: str, tmp_path: Path) -> None:
    told = dev.cli_json("journal", "inspect", str(dev.state))
    assert all(list(journal) == ["journal", "writer", "windows"] for journal in told)
    mine = [window for journal in told for window in journal["windows"] if window["tenant"] == tenant]
    assert sum(window["counted"] for window in mine) == CALLS
    assert list(mine[0]) == ["tenant", "series", "period", "hour", "counted"]
    torn = tmp_path / "torn.journal"
    torn.write_bytes(b"no journal")
    assert "torn.journal" in refused(dev, "journal", "inspect", str(torn))
    (tmp_path / "empty").mkdir()
    assert "no journals" in refused(dev, "journal", "inspect", str(tmp_path / "empty"))


def test_commands_that_find_no_installation_say_what_to_do(dev: SidecarDev, tmp_path: Path) -> None:
    for command in (("flush",), ("usage", "x"), ("tenant", "list")):
        told = refused(dev, *command, "--state", str(tmp_path))
        assert told.startswith("sidecar: no `sidecar dev` is running in")
    # Exit 1 of verify is a difference, and nothing else is.
    told = refused(dev, "verify", "--json", "--state", str(tmp_path), status=2)
    assert told.startswith("sidecar: could not compare: no `sidecar dev` is running in")


def test_an_unknown_command_or_option_is_bad_usage(dev: SidecarDev) -> None:
    assert "No such command" in refused(dev, "usages", status=2)
    assert "--stat" in refused(dev, "flush", "--stat", "x", status=2)
    assert "role" in refused(dev, "serve", "--role", "everything", status=2).lower()
    assert "9" in refused(dev, "dev", "--authz-port", "99999", status=2)


def test_json_goes_to_stdout_alone_and_is_one_line(dev: SidecarDev, tenant: str) -> None:
    for command in (("usage", tenant), ("tenant", "list"), ("verify",), ("catalogue", "show")):
        printed = dev.cli(*command, "--json")
        assert len(printed.splitlines()) == 1
        json.loads(printed)
