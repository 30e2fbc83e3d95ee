from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sidecar"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LINES_MAX = 400
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "managers", "shared"}
STAGES = ("catalogue", "control", "enforcement", "gateway", "ledger", "store", "usage")


def test_imports_point_along_the_arrows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    # It would set up logging for itself, and silence every logger that other tests listen to.
    monkeypatch.setattr("importlinter.cli._configure_logging", lambda _verbose: None)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_every_part_of_the_package_has_its_place_in_a_contract() -> None:
    placed = {name for contract in CONTRACTS for name in _named_in(contract)}
    parts = {
        f"sidecar.{path.stem}" for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"sidecar.__init__"} <= placed


def _named_in(contract: dict[str, Any]) -> set[str]:
    layers = {part.strip(" ()") for layer in contract.get("layers", ()) for part in layer.split("|")}
    return layers | set(contract.get("source_modules", ()))


def test_a_file_is_one_noun() -> None:
    assert [source for source in SOURCES if source.stem in DRAWERS] == []
    assert [source for source in SOURCES if len(source.read_text().splitlines()) > LINES_MAX] == []


def test_no_stage_reads_the_environment() -> None:
    inside = [source for stage in STAGES for source in (PACKAGE / stage).rglob("*.py")]
    assert [source for source in inside if _names(source) & {"environ", "getenv"}] == []


def _names(source: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Attribute)}


SCHEME = "http"  # apart from the option's name, so that this file holds no address itself


def test_no_package_address_is_committed() -> None:
    pins = sorted((ROOT / "requirements").iterdir())
    assert {path.name for path in pins} >= {"runtime.txt", "embedded.txt", "dev.txt"}
    for path in [*pins, ROOT / "pyproject.toml", ROOT / "Makefile"]:
        text = path.read_text()
        assert f"index-url {SCHEME}" not in text
        assert "://" not in text or path.suffix != ".txt"
