"""The results file that all benchmarks share."""

from __future__ import annotations

import json
from pathlib import Path

from bench import report


def test_benchmarks_that_run_one_by_one_add_up_to_one_file(tmp_path: Path) -> None:
    to = tmp_path / "results" / "latest.json"
    report.publish("decision", {"rps": 80_000, "ratio": 0.8}, to)
    report.publish("flusher", {"rows_per_s": 60_000}, to)
    report.publish("decision", {"rps": 90_000, "p99_us": 700}, to)
    everything = json.loads(to.read_text())
    assert everything["flusher"]["rows_per_s"] == 60_000
    assert {name: everything["decision"][name] for name in ("rps", "ratio", "p99_us")} == {
        "rps": 90_000,
        "ratio": 0.8,
        "p99_us": 700,
    }
    assert everything["decision"]["measured"]
    assert everything["decision"]["cpu"] == everything["machine"]["cpu"]
    assert everything["machine"]["python"]


def test_nothing_but_the_results_is_left_in_their_folder(tmp_path: Path) -> None:
    report.publish("start", {"ready_ms": 300}, tmp_path / "latest.json")
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]
