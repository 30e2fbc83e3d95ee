"""The base unit of a metric never changes: amounts that were counted are kept in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.control import catalogues
from sidecar.control.catalogue_file import CatalogueFile
from sidecar.errors import CatalogueInvalid
from sidecar.ledger import metrics, plans
from sidecar.ledger.connection import Ledger

TEXT = """\
metrics:
  api_calls: {}
  llm_tokens:
    scale: 3
plans:
  free: {limits: {api_calls: 5, llm_tokens: 5}}
routes: [{name: chat, match: /chat, costs: {api_calls: 1, llm_tokens: 1}}]
identity: [{header: x-tenant-id}]
"""
FINER = TEXT.replace("scale: 3", "scale: 6")
WITHOUT = (
    TEXT.replace("  llm_tokens:\n    scale: 3\n", "").replace(", llm_tokens: 5", "").replace(", llm_tokens: 1", "")
)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database)
    async with opened.transaction() as tx:
        await catalogues.apply(tx, TEXT, "plans.yaml", actor="test")
    yield opened
    await opened.close()


async def refusal(ledger: Ledger, text: str) -> str:
    with pytest.raises(CatalogueInvalid) as error:
        async with ledger.transaction() as tx:
            await catalogues.apply(tx, text, "plans.yaml", actor="test")
    return str(error.value)


async def test_another_scale_is_refused_with_its_line_and_what_to_do(ledger: Ledger) -> None:
    told = await refusal(ledger, FINER)
    assert told.startswith("plans.yaml:4: metrics.llm_tokens.scale: the scale of llm_tokens is 3 and cannot become 6")
    assert 'write "scale: 3", or give the metric another name' in told
    assert (await refusal(ledger, TEXT.replace("llm_tokens:\n    scale: 3", "llm_tokens: {}"))).startswith(
        "plans.yaml:3: metrics.llm_tokens:"
    )
    async with ledger.transaction() as tx:
        assert await plans.current_revision(tx) == 1


async def test_a_metric_that_comes_back_has_the_scale_it_had(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        await catalogues.apply(tx, WITHOUT, "plans.yaml", actor="test")
    assert "cannot become 6" in await refusal(ledger, FINER)
    async with ledger.transaction() as tx:
        await catalogues.apply(tx, TEXT, "plans.yaml", actor="test")
        assert (await metrics.known(tx))["llm_tokens"].revision == 3


async def test_metrics_of_catalogues_from_before_they_were_kept_are_known(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        for text in (WITHOUT, "plans: 5", WITHOUT):
            await plans.apply(tx, text, {}, actor="test")
        assert {name: one.scale for name, one in (await metrics.known(tx)).items()} == {"api_calls": 0, "llm_tokens": 3}
        assert (await metrics.known(tx))["llm_tokens"].revision == 1


async def test_a_watched_file_with_another_scale_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text(FINER)
    watched = CatalogueFile(file, ledger)
    await watched.look()
    assert "cannot become 6" in watched.problems[0]
    file.write_text(TEXT.replace("api_calls: 5", "api_calls: 6"))
    await watched.look()
    assert watched.problems == []


@pytest.mark.usefixtures("ledger")
async def test_the_comparison_of_catalogues_says_so(database: str, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text(FINER)
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "catalogue", "diff", str(file)],
        env={**os.environ, "SIDECAR_POSTGRES_DSN": database},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert f"{file}:4: metrics.llm_tokens.scale" in done.stderr
