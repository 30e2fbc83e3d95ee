"""Questions that can be asked of one installation, one after the other: what `make bench` begins with.

A question that cannot be answered here does not keep the others from theirs; it is named at the end, with exit 1.

    python -m bench [--full]
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bench import cost, decision, gateways, latency, place, report, start
from tests.servers.sidecar_dev import SidecarDev

# In this order: decision.py asks for one tenant, as leases of thousands that cost.py leaves behind go back for minutes.
# latency.py stops Redis, and changes the catalogue: of 100,000 tenants the worker then reads many again, on the core
# that Nginx' load shares.
SHORT: dict[Any, tuple[Any, ...]] = {
    decision: (0.4, 8, 32),
    cost: (10_000, 10_000, 4),
    gateways: (0.1, 18, 32),
    latency: (9, 10_000, 0),
    start: (3, 1_000_000),
}
FULL: dict[Any, tuple[Any, ...]] = {
    decision: (3, 11, 32),
    cost: (100_000, 10_000, 20),
    gateways: (0.5, 31, 32),
    latency: (35, 10_000, 0),
    start: (7, 1_000_000),
}


def ask(dev: SidecarDev, question: Any, given: tuple[Any, ...]) -> bool:
    """Put one question, and print and keep its answer; whether there is one."""
    measure: Callable[..., Any] = question.measure
    name = question.__name__.removeprefix("bench.")
    began = time.monotonic()
    try:
        found = measure(dev, *given)
    except SystemExit as error:
        print(f"\n{name}: no answer. {error}", flush=True)
        return False
    except Exception:  # noqa: BLE001 - the others are to be asked all the same
        print(f"\n{name}: no answer.\n{traceback.format_exc()}", flush=True)
        return False
    question.publish(found)
    print(f"\n{name}, {time.monotonic() - began:.0f} s\n{question.text(found)}", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer, and steadier")
    given = parser.parse_args()
    print(report.headline(), flush=True)
    with place.installation() as dev:
        answered = [ask(dev, question, how) for question, how in (FULL if given.full else SHORT).items()]
    sys.exit(not all(answered))


if __name__ == "__main__":
    main()
