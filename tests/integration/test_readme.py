"""The commands of the README do what it says: every phrase in quotes above a command is in what that command prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS, TRY = BLOCKS
PORTS = {"authz": 9000, "local": 9001, "ops": 9002, "control": 9003}


class Step(Struct, frozen=True):
    """A command of the README and what the comment above it promises."""

    promised: list[str]
    command: str


def steps() -> tuple[str, list[Step]]:
    """What comes before the first comment, and each comment with its command."""
    preamble, *parts = re.split(r"^# ", TRY, flags=re.MULTILINE)
    return preamble, [
        Step(re.findall(r'"([^"]+)"', comment), command.strip())
        for comment, command in (re.split(r"\n(?!# )", part, maxsplit=1) for part in parts)
    ]


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "readme") as running:
        yield running


@pytest.mark.parametrize("line", COMMANDS.splitlines())
def test_the_two_commands_are_what_make_knows(line: str) -> None:
    command, _, meaning = line.partition("#")
    assert meaning
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_the_readme_says_to_try_shows_what_it_says(dev: SidecarDev) -> None:
    preamble, tried = steps()
    key = json.loads((dev.state / "secrets.json").read_text())["keys"]["demo-free"]
    places = {f"http://127.0.0.1:{port}": getattr(dev.at, name) for name, port in PORTS.items()}
    places |= {"KEY=the-key-of-demo-free": f"KEY={key}", ".venv/bin/sidecar": f"{sys.executable} -m sidecar"}
    for step in tried:
        assert step.promised, step.command
        script = f"set -euo pipefail\n{preamble}{step.command}"
        for named, real in places.items():
            script = script.replace(named, real)
        if "sidecar usage" in step.command:
            dev.cli("flush")
        done = subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "SIDECAR_STATE": str(dev.state)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{step.command}\n{done.stdout}{done.stderr}"
        for phrase in step.promised:
            assert phrase in done.stdout, f"{step.command}\n{done.stdout}"
