"""What a gateway's throughput loses to real decisions, compared with a constant answer in their place.

Real Envoy and real Nginx with the configurations of this repository (only ports are replaced), one thread each, alone
on the first core. Each asks in turn a constant answer of the bare parser and a whole sidecar, over TCP and over a unix
socket; application, sidecar, Redis and load share the last core. Rounds alternate, and the median counts.

    python bench/gateways.py [--seconds 3] [--rounds 3] [--connections 32] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import decision, listener, place, report
from tests.e2e.gateways import GATEWAYS

PATHS = ("tcp", "unix")
# A gateway waits 200 ms for an answer; on a machine with other work that may pass without anybody's fault.
REFUSED_MAX = 0.02


@contextlib.contextmanager
def constant(*where: str) -> Iterator[list[str]]:
    """Servers of a constant answer on the last core: their ports, or paths of sockets."""
    command = [
        "taskset",
        "-c",
        str(place.last_core()),
        sys.executable,
        str(Path(listener.__file__)),
        "--serve",
        "floor",
    ]
    servers = [subprocess.Popen([*command, "--at", one], stdout=subprocess.PIPE, text=True) for one in where]
    try:
        yield [server.stdout.readline().strip() for server in servers if server.stdout is not None]
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def measure(seconds: int, rounds: int, connections: int) -> dict[str, Any]:
    """Requests a second of each gateway, by who answers and how it is asked."""
    rates: dict[tuple[str, str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(place.folder())
        dev = stack.enter_context(place.installation(decision.catalogue()))
        _, key = dev.new_tenant("standard")
        sidecar = stack.enter_context(place.serving(dev))
        os.sched_setaffinity(sidecar.worker, {place.last_core()})
        path = str(folder / "constant.sock")
        floor_port, floor_path, upstream = stack.enter_context(constant("", path, ""))
        urls = {}
        for kind, gateway in GATEWAYS.items():
            for who, port, socket in (
                ("constant", int(floor_port), Path(floor_path)),
                ("sidecar", sidecar.port, sidecar.socket),
            ):
                for way in PATHS:
                    place_of = folder / f"{kind}-{who}-{way}"
                    place_of.mkdir(mode=0o755)
                    one = gateway(place_of, authz_port=port, upstream_port=int(upstream))
                    one.start(socket_path=socket if way == "unix" else None)
                    stack.callback(one.stop)
                    assert one.child is not None
                    for pid in (one.child.pid, *children(one.child.pid)):
                        place.pin(pid)
                    urls[kind, who, way] = f"{one.url}/v1/agents/42/run?mode=fast"
        script = listener.headers({"authorization": f"Bearer {key}"})
        for url in urls.values():
            listener.drive(url, script, 1, connections, refused_max=REFUSED_MAX)
        for _ in range(rounds):
            for asked, url in urls.items():
                rate, _ = listener.drive(url, script, seconds, connections, refused_max=REFUSED_MAX)
                rates.setdefault(asked, []).append(rate)
    found: dict[str, Any] = {}
    for kind in GATEWAYS:
        part: dict[str, Any] = {}
        for way in PATHS:
            constant_rps, rps = (statistics.median(rates[kind, who, way]) for who in ("constant", "sidecar"))
            part[way] = {"constant_rps": round(constant_rps), "rps": round(rps), "ratio": round(rps / constant_rps, 3)}
        found[kind] = part | {"ratio": min(part[way]["ratio"] for way in PATHS)}
    return found


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.seconds, given.rounds, given.connections)
    for kind, part in found.items():
        report.publish(kind, part)
    if given.json:
        print(json.dumps(found))
        return
    print(report.headline())
    for kind, part in found.items():
        for way in PATHS:
            told = part[way]
            print(
                f"{kind:6} {way:5} constant {told['constant_rps']:>7,} requests/s  sidecar {told['rps']:>7,} requests/s"
                f"  ratio {told['ratio']:.2f}"
            )


if __name__ == "__main__":
    main()
