"""The catalogue file that a `sidecar dev` follows from one start to the next, and what its guide says of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.cli import demo, guide
from sidecar.cli.catalogue import default_file
from sidecar.cli.followed import follow
from sidecar.control import catalogues
from sidecar.control.catalogue_file import ACTOR
from sidecar.control.catalogues import Catalogues
from sidecar.errors import CatalogueInvalid
from sidecar.ledger import audit, plans
from sidecar.ledger.connection import Ledger
from sidecar.state import DevServers, State

TEXT = "identity: [{header: x-tenant-id}]\nmetrics: {api_calls: }\nplans: {tiny: {limits: {api_calls: 5}}}\n"
SERVERS = DevServers(
    authz="http://a", local="", ops="", control="", redis="", postgres="", stripe="", admin_token="t", pids={}
)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database)
    yield opened
    await opened.close()


async def in_force(ledger: Ledger) -> str:
    async with ledger.transaction() as tx:
        version = await plans.current(tx)
    assert version is not None
    return version.document


async def noted(ledger: Ledger) -> list[tuple[str, int]]:
    """Who put which revision of the catalogue in force, the newest first, as the audit log has it."""
    async with ledger.transaction() as tx:
        found = [entry for entry in await audit.read(tx) if entry.action == "catalogue.apply"]
    return [(entry.actor, entry.detail["after"]) for entry in found]


async def told(ledger: Ledger, state: State, file: Path) -> str:
    """The guide of a start."""
    secrets = demo.kept(state)
    async with ledger.transaction() as tx:
        catalogue = await Catalogues().in_force(tx)
        await demo.put_tenants(tx, catalogue, secrets)
        scene = await guide.scene(tx, catalogue, file, 1_800_000_000)
    return guide.text(SERVERS, secrets, state, scene)


async def test_a_start_without_a_catalogue_goes_on_with_the_file_of_the_last_one(
    ledger: Ledger, tmp_path: Path
) -> None:
    state, file = State(tmp_path), tmp_path / "plans.yaml"
    file.write_text(TEXT)
    followed = await follow(state, str(file), default_file(), ledger)
    said = await told(ledger, state, followed.path)
    assert f"{file}   (watched" in said
    assert "curl" not in said, "what the default catalogue shows is not what this one does"
    assert "plan tiny" in said

    file.write_text(TEXT.replace("5", "6"))
    assert (await follow(state, None, default_file(), ledger)).path == file
    assert await in_force(ledger) == file.read_text(), "what was written meanwhile is applied"
    assert await noted(ledger) == [(ACTOR, 2), (ACTOR, 1)]

    file.write_text("plans: 5")
    followed = await follow(state, None, default_file(), ledger)
    assert followed.problems, "a file that became bad is refused, the last good one stays"
    assert len(await noted(ledger)) == 2, "what changes nothing is not noted"
    assert await in_force(ledger) == TEXT.replace("5", "6")

    file.unlink()
    await follow(state, None, default_file(), ledger)
    assert await in_force(ledger) == TEXT.replace("5", "6")


async def test_what_somebody_else_put_in_force_stays_until_the_file_changes(ledger: Ledger, tmp_path: Path) -> None:
    state, file = State(tmp_path), tmp_path / "plans.yaml"
    file.write_text(TEXT)
    await follow(state, str(file), default_file(), ledger)
    async with ledger.transaction() as tx:
        await catalogues.apply(tx, TEXT.replace("5", "7"), "other", actor="test")
    followed = await follow(state, None, default_file(), ledger)
    await followed.look()
    assert await in_force(ledger) == TEXT.replace("5", "7")
    assert f"another one than in {file}" in await told(ledger, state, followed.path)
    file.write_text(TEXT.replace("5", "8"))
    await followed.look()
    assert await in_force(ledger) == TEXT.replace("5", "8")
    assert await noted(ledger) == [(ACTOR, 3), ("test", 2), (ACTOR, 1)]


async def test_a_change_that_refuses_every_request_of_a_route_is_doubted_and_applied(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, file = State(tmp_path), tmp_path / "plans.yaml"
    file.write_text(TEXT)
    followed = await follow(state, str(file), default_file(), ledger)
    file.write_text(TEXT + "routes: [{name: bulk, match: /bulk, costs: {api_calls: 6}}]\n")
    await followed.look()
    assert await in_force(ledger) == file.read_text()
    (warned,) = (record for record in caplog.records if record.message == "catalogue is doubtful")
    assert "route bulk" in str(vars(warned))


async def test_the_first_start_follows_the_default_catalogue_and_shows_what_to_try(
    ledger: Ledger, tmp_path: Path
) -> None:
    state = State(tmp_path)
    for _ in range(2):
        followed = await follow(state, None, default_file(), ledger)
        assert followed.path == default_file()
        said = await told(ledger, state, followed.path)
        assert said.count("curl") == 6
        assert "goes on where it was" not in said


async def test_a_bad_file_that_is_named_is_an_error(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text("plans: 5")
    with pytest.raises(CatalogueInvalid):
        await follow(State(tmp_path), str(file), default_file(), ledger)


def test_the_guide_names_the_program_by_a_path_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "my bin" / "sidecar"
    installed.parent.mkdir()
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(installed), "dev"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert guide.program() == f"'{installed}'"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert guide.program() == "sidecar"
    monkeypatch.setattr(sys, "argv", ["/x/sidecar/__main__.py", "dev"])
    assert guide.program() == f"{sys.executable} -m sidecar"
