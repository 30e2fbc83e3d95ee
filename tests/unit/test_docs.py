"""What the documents name is there: files, headings, modules, tests, commands, settings and metrics."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sidecar.cli import main
from sidecar.enforcement.decision import REASONS
from sidecar.gateway.limits import ListenerLimits
from sidecar.settings import NAMES
from sidecar.store.keys import Keyspace
from sidecar.telemetry import FAMILIES

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "docs", "envoy", "k8s", "nginx", "sidecar", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
NAMED = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
README_LINES_MAX = 120
# What docs/settings.md says of names that Kubernetes sets is no setting; SIDECAR_STATE is read by commands only.
NO_SETTINGS = {"SIDECAR_STATE", "SIDECAR_SERVICE_HOST", "SIDECAR_PORT_9002_TCP", "SIDECAR_"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def prose(name: str) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text_of(name), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What can be linked to inside a document, as renderers of Markdown name headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMED)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (document.parent / target).resolve() if target else document
        assert found.exists(), link
        assert found.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(found), link


def test_every_document_is_in_the_index() -> None:
    linked = {
        (ROOT / "docs" / link.partition("#")[0]).resolve()
        for link in re.findall(r"\]\(([^)\s]+)\)", text_of("docs/index.md"))
    }
    assert [name for name, path in zip(NAMED, DOCUMENTS, strict=True) if path not in linked] == ["docs/index.md"]


def test_the_readme_fits_two_screens() -> None:
    assert len(text_of("README.md").splitlines()) <= README_LINES_MAX


def test_every_reason_of_a_decision_is_explained_in_its_order() -> None:
    table = text_of("docs/answers.md").split("## Reasons")[1].split("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", table, re.MULTILINE)
    assert sorted(name for name, _ in told) == sorted(REASONS)
    assert [status for _, status in told] == sorted(status for _, status in told)


def test_every_module_has_its_sentence_in_the_architecture_and_no_other() -> None:
    files = text_of("ARCHITECTURE.md").split("## Every file")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| .+ \|$", files, re.MULTILINE)
    named = [module for row in rows for module in re.findall(r"`([\w/]+\.py)`", row)]
    package = ROOT / "sidecar"
    modules = [str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(modules)


def existing() -> set[str]:
    """Every test there is."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_is_named_exists() -> None:
    named = {test for name in NAMED for test in re.findall(r"\btest_\w+\b(?!\.py)", text_of(name))}
    assert named - existing() == set()


def test_every_outage_says_which_test_shows_it() -> None:
    table = text_of("docs/reliability.md").split("\n\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| .* \| (.*) \|$", table, re.MULTILINE)[2:]
    assert rows
    for down, shown in rows:
        assert re.search(r"`test_\w+`", shown) or shown in ("no test yet", "see below"), down


def test_every_script_and_key_of_redis_is_described_and_no_other() -> None:
    keys_section, scripts_section = re.split("\n## ", text_of("docs/protocol.md").split("\n## Keys in Redis")[1])[:2]
    scripts = [
        name for cell in re.findall(r"^\| (`.*?) \|", scripts_section, re.MULTILINE) for name in cell.split(", ")
    ]
    files = {path.stem for path in (ROOT / "sidecar" / "store" / "lua").glob("*.lua")}
    assert {name.strip("`") for name in scripts} == files - {"prelude"}
    described = set(re.findall(r"^\| `sc:(?:\{sNNN\}:)?(\w+)", keys_section, re.MULTILINE))
    names = {name for name in dir(Keyspace) if not name.startswith("_")} - {"shard_of", "tag", "prefix", "shards"}
    assert described == {name.replace("api_key", "key") for name in names}


def commands() -> Iterator[str]:
    """Command lines in fenced blocks of shell, and in code within sentences."""
    for name in NAMED:
        for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE):
            yield from re.findall(r"^(?:\.venv/bin/)?(sidecar .*)$", block, re.MULTILINE)
        yield from re.findall(r"(?<!`)`(sidecar [^`]+)`", prose(name))


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_that_is_named_exists_with_its_options(line: str) -> None:
    command: click.Command = main
    words = shlex.split(line, comments=True)[1:]
    while words and isinstance(command, click.Group):
        word = words.pop(0)
        if word.startswith("-"):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, word
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", NAMED)
def test_every_setting_and_metric_that_is_named_exists(name: str) -> None:
    settings = set(re.findall(r"\bSIDECAR_\w*", text_of(name)))
    assert {found.removesuffix("_FILE") for found in settings} - {s.removesuffix("_FILE") for s in NAMES} <= NO_SETTINGS
    metrics = set(re.findall(r"\bsidecar_(?!admin\b|control\b|flusher\b|tenant\b)\w+", text_of(name)))
    assert {re.sub(r"_seconds_(count|sum|bucket)$", "_seconds", found) for found in metrics} <= set(FAMILIES)


def test_every_bound_of_the_listener_is_told_with_its_test() -> None:
    rows = re.findall(
        r"^\| `(\w+)` ([\d,]+)\b.* \| .* \| .*`test_\w+`.* \|$", text_of("docs/bad-input.md"), re.MULTILINE
    )
    limits = ListenerLimits()
    assert dict(rows) == {name: f"{getattr(limits, name):,}" for name in limits.__struct_fields__}
