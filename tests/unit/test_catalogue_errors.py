"""Every file in catalogues/ is wrong in the lines that say so, "# wrong: text | text", and in no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.catalogue.load import parse, read
from sidecar.errors import CatalogueInvalid

FILES = sorted((Path(__file__).parent / "catalogues").glob("*.yaml"))


def expected(text: str) -> list[tuple[int, str]]:
    """Line and text of each problem that a file announces."""
    return [
        (number, part)
        for number, line in enumerate(text.splitlines(), 1)
        if "# wrong: " in line
        for part in line.split("# wrong: ", 1)[1].split(" | ")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_error_is_reported_with_its_line_and_what_would_be_right(file: Path) -> None:
    text = file.read_text("utf-8")
    with pytest.raises(CatalogueInvalid) as refused:
        parse(text, file.name)
    problems = list(refused.value.problems)
    for line, part in expected(text):
        found = [problem for problem in problems if problem.startswith(f"{file.name}:{line}: ") and part in problem]
        assert found, f"line {line} should say {part!r}, but there is:\n" + "\n".join(refused.value.problems)
        problems.remove(found[0])
    assert not problems
    assert all("; " in problem for problem in refused.value.problems)


def test_the_files_really_announce_something() -> None:
    assert all(expected(file.read_text("utf-8")) for file in FILES)
    assert len(FILES) > 60


def test_a_nul_byte_is_named_with_its_line() -> None:
    with pytest.raises(CatalogueInvalid, match="c:2: this is no YAML"):
        parse("metrics: {}\nplans: \0", "c")


def test_a_flood_of_brackets_is_refused_not_fatal() -> None:
    with pytest.raises(CatalogueInvalid, match="nested too deeply"):
        parse("[" * 20_000, "c")


def test_merges_that_contain_themselves_end() -> None:
    with pytest.raises(CatalogueInvalid, match="nested too deeply"):
        parse("plans: &a {<<: *a}", "c")


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(CatalogueInvalid, match="characters; at most"):
        parse("#" * 2_000_000, "c")


def test_unreadable_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogueInvalid, match="No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"metrics: \xe9")
    with pytest.raises(CatalogueInvalid, match="no UTF-8"):
        read(tmp_path / "latin.yaml")
