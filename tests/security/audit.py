"""Whether any pinned package has a known hole, those of tests and tools too: pip-audit, with an answer that is clear.

    python -m tests.security.audit [--tolerate-silence]

pip-audit alone says "no known vulnerabilities" of packages it could ask nobody about. Exit 0: every package was asked
about and none has a known hole. 1: one has. 3: the advisory source did not answer for all; 0 with --tolerate-silence,
which is for machines without a way there, and it is said all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
PINS = REQUIREMENTS / "runtime.txt"
ANSWER_S = 3
ALL_S = 180
HOLES = 1
SILENCE = 3


def judge(report: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Exit code, and what to say; None is a pip-audit that had nothing to report from."""
    if report is None:
        return SILENCE, ["The advisory source does not answer: nothing was checked."]
    found = report["dependencies"]
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {' '.join(hole['fix_versions']) or 'none'}"
        for package in found
        for hole in package.get("vulns", ())
    ]
    skipped = [package["name"] for package in found if "skip_reason" in package]
    if found and len(skipped) == len(found):
        return SILENCE, [f"The advisory source knows none of {len(found)} packages: nothing was checked."]
    said = [*holes, *([f"Not checked, the advisory source knows nothing of: {', '.join(skipped)}"] if skipped else [])]
    if holes:
        return HOLES, said
    if skipped or not found:
        return SILENCE, said or ["There was nothing to check."]
    return 0, [f"{len(found)} packages have no known hole."]


def files() -> list[Path]:
    """Every file of pins; none holds only what another one has, whatever is added later."""
    return sorted(REQUIREMENTS.glob("*.txt"))


def ask(pins: list[Path]) -> dict[str, Any] | None:
    """What pip-audit finds of these pins; it takes them as they are and installs nothing."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip"]
    command += [word for path in pins for word in ("--requirement", str(path))]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(ANSWER_S)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ALL_S, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for known holes in pinned packages.")
    parser.add_argument("--tolerate-silence", action="store_true", help="an advisory source out of reach is no failure")
    tolerated = parser.parse_args().tolerate_silence
    code, said = judge(ask(files()))
    print("\n".join(said))
    return 0 if code == SILENCE and tolerated else code


if __name__ == "__main__":
    sys.exit(main())
