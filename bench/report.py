"""Where every benchmark puts its numbers: one JSON file with a part for each question.

Guarantees: a part is replaced key by key, so benchmarks that are run one by one add up to one file; two that finish at
            the same moment do not lose each other's numbers; one that is killed leaves the file as it was.
Gives up:   history. The file has the latest numbers only; each part says when and on what machine it was measured.

A benchmark calls ``publish("flusher", {"rows_per_s": 61_000})`` and prints whatever helps a person. The keys that
readers may rely on are listed in bench/README.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "latest.json"
VERSIONS = ("uvloop", "httptools", "msgspec")


def publish(part: str, found: Mapping[str, Any], to: Path = RESULTS) -> None:
    """Merge the numbers of one part into the results."""
    to.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(to.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        everything = json.loads(to.read_text()) if to.exists() else {}
        everything["machine"] = on = machine()
        measured = {
            "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "load": round(os.getloadavg()[0], 2),
            "cpu": on["cpu"],
        }
        everything[part] = everything.get(part, {}) | dict(found) | measured
        fresh = to.with_suffix(".new")
        fresh.write_text(json.dumps(everything, indent=2) + "\n")
        fresh.replace(to)
    finally:
        os.close(folder)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_in": sys.base_prefix,
        **{name: version(name) for name in VERSIONS},
    }


def headline() -> str:
    """The machine in a line, for the top of what a benchmark prints."""
    on = machine()
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", *VERSIONS))
    return f"{on['cores']} cores, {on['cpu']}, load {os.getloadavg()[0]:.2f}; {versions}"
