from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import COMMANDS, main
from sidecar.cli.catalogue import default_file
from sidecar.cli.target import parse_json_value
from sidecar.control.accounts import changed
from sidecar.errors import NotFound
from sidecar.state import DevServers, State
from sidecar.usage.journal import Journal
from sidecar.usage.window import WindowKey

EXAMPLE = str(default_file())


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("SIDECAR_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def sidecar(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="sidecar")


def test_every_command_loads_and_has_a_sentence_of_help() -> None:
    listed = sidecar("--help").output
    for name in COMMANDS:
        assert sidecar(name, "--help").exit_code == 0
        assert (f"  {name} " in listed) is not name.startswith("_")


def test_a_valid_catalogue_passes_the_check() -> None:
    result = sidecar("check", EXAMPLE)
    assert result.exit_code == 0
    assert "valid" in result.output


def test_every_error_of_a_catalogue_is_printed_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("metrics: {calls: {}}\nplans: {free: {limits: {cals: 5}}}\nrutes: []\nidentity: [{header: x-t}]\n")
    result = sidecar("check", str(bad))
    assert result.exit_code == 1
    assert f"{bad}:2:" in result.stderr
    assert f"{bad}:3:" in result.stderr
    assert result.stdout == ""


def test_a_route_that_a_plan_can_never_admit_is_doubted(tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text("""
identity: [{header: x-tenant-id}]
metrics: {calls: , credits: {scale: 1}}
plans:
  small: {features: {video: false}, limits: {credits: 5}}
  none: {limits: {credits: 0}}
  large: {limits: {credits: 50}}
  without: {limits: {calls: 1}}
routes:
  - {name: render, match: /render, costs: {credits: 7.5}}
  - {name: video, match: /video, costs: {credits: 7.5}, requires: [video]}
  - {name: huge, match: /huge, costs: {calls: 2, credits: 100}}
default: {costs: {}}
""")
    result = sidecar("check", str(file))
    assert result.exit_code == 0
    render, huge = result.stderr.splitlines()
    begun = f"{file}: doubtful: route"
    assert render == f"{begun} render: never admitted under plan small: it costs 7.5 credits, limit credits stops at 5"
    assert huge.startswith(f"{begun} huge: never admitted under plan small: it costs 100 credits, ")
    assert huge.endswith("; plan without: it costs 2 calls, limit calls stops at 1")


def test_a_check_without_a_file_says_what_to_name() -> None:
    result = sidecar("check")
    assert result.exit_code == 2
    assert "SIDECAR_CATALOGUE_FILE" in result.stderr


def test_the_price_of_the_reference_month_is_exact() -> None:
    usage = ["llm_tokens=1,500,000", "agent_executions=5500", "api_calls=120000", "storage_gb=105", "user_seats=27"]
    result = sidecar("price", "standard", *usage, "--catalogue", EXAMPLE, "--json")
    assert json.loads(result.output) == {
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


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"),
    [
        (["standrad"], 1, 'did you mean "standard"?'),
        (["standard", "api_cals=1"], 1, 'did you mean "api_calls"?'),
        (["standard", "api_calls=1.5"], 1, "no decimal places"),
        (["standard", "api_calls"], 2, "METRIC=AMOUNT"),
        (["standard", "api_calls=1", "api_calls=1"], 2, "given twice"),
        (["standard", "--currency", "eur"], 1, "no prices in eur; it has usd"),
        (["standard", "--annual"], 1, "no annual price"),
    ],
)
def test_a_price_that_cannot_be_told_says_why(arguments: list[str], code: int, remedy: str) -> None:
    result = sidecar("price", *arguments, "--catalogue", EXAMPLE)
    assert result.exit_code == code
    assert remedy in result.stderr


def test_a_command_without_an_installation_says_how_to_name_one() -> None:
    result = sidecar("usage", "acme")
    assert result.exit_code == 2
    assert "SIDECAR_POSTGRES_DSN" in result.stderr


def test_a_state_without_a_running_dev_is_named(tmp_path: Path) -> None:
    result = sidecar("tenant", "list", "--state", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert f"no `sidecar dev` is running in {tmp_path / 'none'}" in result.stderr


def test_bad_settings_are_all_printed_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_WORKERS", "none")
    monkeypatch.setenv("SIDECAR_SHARD", "4")
    result = sidecar("serve", "--role", "authz")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2


def test_where_dev_is_can_be_read_only_by_its_owner_and_only_while_it_runs(tmp_path: Path) -> None:
    state = State(tmp_path)
    servers = DevServers(
        authz="a",
        local="l",
        ops="o",
        control="c",
        redis="r",
        postgres="p",
        stripe="",
        admin_token="t",
        pids={"redis": 1},
    )
    state.claim()
    state.write_dev(servers)
    assert state.dev_file.stat().st_mode & 0o777 == 0o600
    assert state.read_dev() == servers
    state.release()
    with pytest.raises(NotFound):
        state.read_dev()


def test_a_journal_of_a_living_process_can_be_inspected(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "00000000000000ff.journal", "00000000000000ff")
    cell = journal.cell(WindowKey("acme", "api_calls", 0, 494_000).encode())
    cell.view[cell.index] = 7
    result = sidecar("journal", "inspect", str(tmp_path), "--json")
    journal.close(delete=True)
    assert json.loads(result.output) == [
        {
            "journal": str(tmp_path / "00000000000000ff.journal"),
            "writer": "00000000000000ff",
            "windows": [{"tenant": "acme", "series": "api_calls", "period": 0, "hour": 494000, "counted": 7}],
        }
    ]


def test_a_directory_without_journals_says_so(tmp_path: Path) -> None:
    result = sidecar("journal", "inspect", str(tmp_path))
    assert result.exit_code == 1
    assert "holds no journals" in result.stderr


def test_values_are_json_where_they_are_json_and_decimals_stay_exact() -> None:
    assert parse_json_value("5000") == 5000
    assert parse_json_value("2.50") == "2.50"
    assert parse_json_value("null") is None
    assert parse_json_value("true") is True
    assert parse_json_value("gold") == "gold"


def test_an_override_is_set_and_taken_back_without_touching_others() -> None:
    first = changed({"features": {"sso": True}}, ["limits", "calls"], 5, clear=False)
    assert first == {"features": {"sso": True}, "limits": {"calls": 5}}
    longer = changed(first, ["limits", "calls", "cap"], "hard", clear=False)
    assert longer["limits"] == {"calls": {"included": 5, "cap": "hard"}}
    assert changed(longer, ["limits", "calls"], None, clear=True) == {"features": {"sso": True}}
    assert changed({}, ["limits", "calls"], None, clear=True) == {}
