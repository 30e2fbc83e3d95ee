"""Coverage-guided fuzzing: `python -m tests.fuzz.run --minutes 5 [TARGET ...]`, or `make fuzz MINUTES=5`.

The engine is Atheris (libFuzzer with coverage of Python code). Each target runs in a process of its own; its growing
corpus stays in .fuzz/, which is not kept. A finding is printed and saved under tests/fuzz/corpus, where the test suite
runs it again. The last line is JSON: runs, seconds and findings of each target; exit 1 on a finding.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
GROWING = HERE.parents[1] / ".fuzz"
NAMES = sorted(path.name for path in (HERE / "corpus").iterdir())
INPUT_BYTES_MAX = 4_096
SLOW_S = 5  # an input that takes longer is a finding
MEMORY_MB = 1_024
_RUNS = re.compile(rb"Done (\d+) runs")


def fuzz(name: str, seconds: int) -> dict[str, object]:
    """Run one target in its process."""
    growing = GROWING / name
    growing.mkdir(parents=True, exist_ok=True)
    seeds = HERE / "corpus" / name
    before = set(seeds.iterdir())
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.run", "--engine", name, str(growing), str(seeds)),
            *(
                f"-max_total_time={seconds}",
                f"-max_len={INPUT_BYTES_MAX}",
                f"-timeout={SLOW_S}",
                "-print_final_stats=1",
            ),
            *(f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={seeds}/found-", f"-dict={HERE / 'tokens.dict'}"),
        ],
        cwd=HERE.parents[1],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        check=False,
    )
    runs = _RUNS.search(done.stdout) or re.search(rb"number_of_executed_units: (\d+)", done.stdout)
    findings = sorted(path.name for path in set(seeds.iterdir()) - before)
    if done.returncode:
        print(done.stdout.decode("utf-8", "replace")[-4_000:], file=sys.stderr)
        findings = findings or [f"exit {done.returncode}"]
    return {"runs": int(runs[1]) if runs else 0, "seconds": round(time.monotonic() - began), "findings": findings}


def engine(name: str, arguments: list[str]) -> None:
    """Become the process of one target."""
    import atheris  # noqa: PLC0415 - only this process needs it

    with atheris.instrument_imports(include=["sidecar"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - what it imports is instrumented
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--engine"]:
        engine(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=5, help="for all targets together")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; else all")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(NAMES):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(NAMES)}")
    names = asked.targets or NAMES
    seconds = max(1, round(asked.minutes * 60 / len(names)))
    found = {name: fuzz(name, seconds) for name in names}
    print(json.dumps(found))
    return any(result["findings"] for result in found.values())


if __name__ == "__main__":
    sys.exit(main())
