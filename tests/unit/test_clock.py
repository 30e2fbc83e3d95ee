from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from sidecar.clock import Clock

HOUR_MS = 3_600_000


def test_wall_time_is_unix_time() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= Clock().wall_ms() <= time.time_ns() // 1_000_000


def test_the_wall_clock_of_every_process_moves_at_once(tmp_path: Path) -> None:
    ours = Clock(tmp_path / "clock")
    program = (
        "import sys, pathlib, sidecar.clock as c; k = c.Clock(pathlib.Path(sys.argv[1]));"
        "print(k.wall_ms(), flush=True); sys.stdin.readline(); print(k.wall_ms(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "clock")], stdin=-1, stdout=-1, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        before = int(other.stdout.readline())
        assert ours.advance(HOUR_MS) == HOUR_MS
        other.stdin.write("\n")
        other.stdin.flush()
        assert int(other.stdout.readline()) - before >= HOUR_MS


def test_the_offset_survives_a_restart(tmp_path: Path) -> None:
    Clock(tmp_path / "clock").advance(HOUR_MS)
    before = time.time_ns() // 1_000_000
    assert Clock(tmp_path / "clock").wall_ms() >= before + HOUR_MS


def test_the_monotonic_clock_does_not_move_along(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    before = clock.monotonic_ms()
    clock.advance(HOUR_MS)
    assert clock.monotonic_ms() - before < HOUR_MS


def test_only_a_clock_with_a_file_is_movable(tmp_path: Path) -> None:
    assert not Clock().movable
    assert Clock(tmp_path / "clock").movable
