"""Every input that ever broke a promise, and the seeds of `make fuzz`, once more; hypothesis adds some of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus_breaks_no_promise(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_seeds_and_every_file_a_target() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_seed_that_is_cut_doubled_or_damaged_breaks_no_promise(name: str) -> None:
    seeds = [path.read_bytes() for path in FILES if path.parent.name == name]

    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(seeds), st.sampled_from(seeds), st.integers(0, 4096), st.binary(max_size=6), st.integers(0, 9)
    )
    def damaged(seed: bytes, other: bytes, place: int, noise: bytes, gone: int) -> None:
        at = place % (len(seed) + 1)
        TARGETS[name](seed[:at] + noise + seed[at + gone :])
        TARGETS[name](seed[:at] + other[place % (len(other) + 1) :])

    damaged()
