"""A flame graph of the decision path: where a worker spends its time while wrk drives it.

py-spy looks at the worker's stack, native frames included, some hundred times a second. It is not among the pinned
dependencies: `pip install py-spy` first.

    python bench/flame.py [--seconds 10]     (writes bench/results/flame.svg)
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import threading
from pathlib import Path

from bench import decision, listener, place, wrk
from bench.report import RESULTS

RATE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    given = parser.parse_args()
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(__file__).parents[1] / ".venv" / "bin"))
    if spy is None:
        raise SystemExit("this needs py-spy: .venv/bin/pip install py-spy")
    picture = RESULTS.parent / "flame.svg"
    with place.installation() as dev:
        dev.put_tenant(decision.TENANT, "standard")
        dev.cli("flush")
        script = wrk.headers(decision.HEADERS)
        url = f"{dev.at.authz}{listener.PATH}"
        load = threading.Thread(target=wrk.drive, args=(url, script, given.seconds + 3, 32))
        load.start()
        command = [spy, "record", "--pid", str(place.worker(dev)), "--duration", str(given.seconds)]
        subprocess.run([*command, "--rate", str(RATE), "--native", "--output", str(picture)], check=True)
        load.join()
    print(picture)


if __name__ == "__main__":
    main()
