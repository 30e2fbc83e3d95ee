"""What the program is made of: known holes, and the bill of materials of a build."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.security.audit import HOLES, PINS, SILENCE, files, judge

ROOT = Path(__file__).parents[2]
SAFE = {"name": "redis", "version": "8.1.0", "vulns": []}
HOLED = {"name": "yarl", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNASKED = {"name": "click", "skip_reason": "Dependency not found on PyPI and could not be audited: click (8)"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SAFE], 0, "1 packages have no known hole."),
        ([SAFE, HOLED], HOLES, "yarl 1.0: PYSEC-1, mended in 1.1"),
        ([UNASKED, HOLED], HOLES, "knows nothing of: click"),
        ([SAFE, UNASKED], SILENCE, "knows nothing of: click"),
        ([UNASKED], SILENCE, "none of 1 packages: nothing was checked"),
        ([], SILENCE, "nothing to check"),
    ],
)
def test_a_package_that_nobody_could_be_asked_about_does_not_count_as_safe(
    packages: list[dict[str, Any]], code: int, said: str
) -> None:
    found, lines = judge({"dependencies": packages, "fixes": []})
    assert found == code
    assert said in "\n".join(lines)


def test_every_pin_is_asked_about_and_not_those_of_the_program_alone() -> None:
    """What builds, tests and serves `sidecar dev` runs on the same machines."""
    asked = {path.name for path in files()}
    assert asked >= {"runtime.txt", "embedded.txt", "redis.txt", "dev.txt", "fuzz.txt", "audit.txt"}
    assert asked == {path.name for path in (ROOT / "requirements").iterdir()}


def test_an_advisory_source_out_of_reach_is_silence_and_no_health() -> None:
    assert judge(None)[0] == SILENCE


def test_the_bill_of_materials_lists_every_pinned_package_with_its_hashes(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    subprocess.run(["make", "sbom", f"SBOM={bill}"], cwd=ROOT, check=True, capture_output=True, timeout=60)
    found = json.loads(bill.read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "quota-sidecar"
    text = PINS.read_text().replace("\\\n", " ")
    pins = {
        match[1]: (match[2], set(re.findall(r"sha256:(\w+)", line)))
        for line in text.splitlines()
        if (match := re.match(r"(\S+?)(?:\[.*?\])?==(\S+)", line))
    }
    listed = {
        part["name"]: (
            part["version"],
            {entry["content"] for where in part["externalReferences"] for entry in where.get("hashes", ())},
        )
        for part in found["components"]
    }
    assert len(pins) > 20
    assert listed == pins
