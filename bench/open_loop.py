"""Load at a given rate, whatever the answers take.

A closed loop (wrk) sends the next request when the last one is answered: while the server stalls it sends nothing, so
the requests that would have met the stall are never measured ("coordinated omission"). Here every request has a time
at which it is due, and its latency is counted from that time, also when all connections are busy and it has to wait
for one.

Requests are due at even distances, or at random ones (``poisson``: the times between them are exponential). Arrivals
of a Poisson process see averages over time: however the load beside them comes and goes, the part of them that waits
is the part of all times at which anybody who came would have waited. So a few thousand random requests a second are a
fair sample of what a server under heavy load from elsewhere does (steady.py), and no generator has to send all of it.

One process, blocking sockets, no event loop; it sleeps until the next request is due or an answer is there. It asks for
real-time priority, so that what else runs on its core does not look like latency of the server; where it may not have
it, the control beside each figure (the same load on a constant answer) tells how much of it is the generator's own.

    python bench/open_loop.py --port 9000 --rate 10000 --seconds 5 [--connections 32] [--tenants NAMES] [--zipf]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CONNECTIONS = 32
DRAIN_S = 2.0
PICKS = 1 << 18
LOST_MAX = 0.01
TRIES = 50
RETRY_S = 0.05
ZIPF = 1.0
SECOND_NS = 1_000_000_000
PATH = "/envoy/v1/agents/42/run?mode=fast"
# In front of the steady load, which is in front of everything else.
PRIORITY = 3


def request(tenant: str, path: str = PATH) -> bytes:
    """A check as Envoy sends it, as long as that of bench/decision.py."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nx-tenant-id: {tenant}\r\n"
        "authorization: Bearer qs_0123456789abcdef\r\nx-request-no: 7c4b1a52-5a9e-4f38-9d6e-0a6c6f9f4a10\r\n"
        "content-length: 0\r\n\r\n"
    ).encode()


def order(count: int, *, zipf: bool) -> Sequence[int]:
    """Which tenant each request is of: in turn, or by Zipf's law, in which the n-th has 1/n of the first's share."""
    if not zipf:
        return range(count)
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(count)))
    return array("l", random.Random(1).choices(range(count), cum_weights=weights, k=PICKS))


def times(rate: int, seconds: float, *, poisson: bool) -> Iterator[int]:
    """When requests are due, in ns from the start."""
    chance = random.Random(1)
    now = 0.0
    while now < seconds:
        yield int(now * SECOND_NS)
        now += chance.expovariate(rate) if poisson else 1 / rate


def drive(
    port: int, requests: Sequence[bytes], picks: Sequence[int], due_ns: Iterable[int], connections: int
) -> tuple[array[float], int, int]:
    """Latencies in microseconds from when each request was due, answers that were no 200, and requests unanswered."""
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for one in sockets:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    free = deque(one.fileno() for one in sockets)
    asked: dict[int, int] = {}
    took = array("d")
    refused = sent = 0
    clock, choose = time.perf_counter_ns, select.select
    gc.disable()
    began = clock() + 1_000_000
    coming = iter(due_ns)
    due: int | None = began + next(coming)
    while due is not None or asked:
        now = clock()
        while due is not None and due <= now and free:
            fd = free.popleft()
            asked[fd] = due
            os.write(fd, requests[picks[sent % len(picks)]])
            sent += 1
            following = next(coming, None)
            due = None if following is None else began + following
            now = clock()
        wait_s = DRAIN_S if due is None or not free else max(0.0, (due - now) / SECOND_NS)
        answered, _, _ = choose(list(asked), (), (), wait_s)
        if not answered and (due is None or not free):
            break
        for fd in answered:
            data = os.read(fd, 4_096)
            took.append((clock() - asked.pop(fd)) / 1_000)
            if data[9:12] != b"200":
                refused += 1
            free.append(fd)
    gc.enable()
    lost = len(asked) + (due is not None) + sum(1 for _ in coming)
    for one in sockets:
        one.close()
    return took, refused, lost


def warm(port: int, tenants: Sequence[str], connections: int = 8) -> None:
    """Ask for each tenant until it is allowed, a few at a time: a worker that knows nobody yet asks Redis for each."""
    waiting = deque((name, TRIES) for name in tenants)
    poll = select.epoll()
    asking: dict[int, tuple[socket.socket, tuple[str, int]]] = {}
    for one in (socket.create_connection(("127.0.0.1", port)) for _ in range(min(connections, len(waiting)))):
        poll.register(one.fileno(), select.EPOLLIN)
        asking[one.fileno()] = (one, waiting.popleft())
        one.send(request(asking[one.fileno()][1][0]))
    while asking:
        for fd, _ in poll.poll():
            one, (name, tries) = asking.pop(fd)
            if one.recv(65_536)[9:12] != b"200":
                if not tries:
                    raise SystemExit(f"{name} is not allowed")
                time.sleep(RETRY_S)
                waiting.append((name, tries - 1))
            if waiting:
                asking[fd] = (one, waiting.popleft())
                one.send(request(asking[fd][1][0]))
            else:
                one.close()


def percentiles(took: Sequence[float]) -> dict[str, float]:
    """What they stand for: 99 of 100 requests took at most ``p99_us``."""
    ordered = sorted(took)

    def at(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 1)

    return {"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": round(ordered[-1], 1)}


def loaded(
    port: int,
    rate: int,
    seconds: float,
    tenants: Sequence[str],
    *,
    connections: int = CONNECTIONS,
    zipf: bool = False,
    poisson: bool = False,
    real_time: bool = True,
    beside: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Run this program on the last core. ``beside`` is called meanwhile with the time (s) since the start."""
    command = [sys.executable, __file__, "--port", str(port), "--rate", str(rate), "--seconds", str(seconds)]
    options = {"--zipf": zipf, "--poisson": poisson, "--plain-priority": not real_time}
    command += ["--connections", str(connections), *(option for option, given in options.items() if given)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write("\n".join(tenants))
    process.stdin.close()
    began = time.monotonic()
    while process.poll() is None:
        if beside is not None:
            beside(time.monotonic() - began)
        time.sleep(0.02)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit("the load failed")
    found: dict[str, Any] = json.loads(process.stdout.read())
    return found


def check(told: Mapping[str, Any]) -> None:
    """End with a message where too many requests were refused or lost: then the numbers mean nothing."""
    if told["refused"] + told["lost"] > LOST_MAX * (told["requests"] + told["lost"]):
        raise SystemExit(f"too many requests were refused or lost; is the machine busy? {dict(told)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--tenants", type=Path, help="one name a line; else from standard input")
    parser.add_argument("--zipf", action="store_true")
    parser.add_argument("--plain-priority", action="store_true", help="latencies mean little then")
    parser.add_argument("--poisson", action="store_true")
    given = parser.parse_args()
    names = (given.tenants.read_text() if given.tenants else sys.stdin.read()).split()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    priority = not given.plain_priority
    try:
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        priority = False
    requests = [request(name) for name in names]
    due_ns = times(given.rate, given.seconds, poisson=given.poisson)
    took, refused, lost = drive(given.port, requests, order(len(names), zipf=given.zipf), due_ns, given.connections)
    found = percentiles(took) | {"requests": len(took), "refused": refused, "lost": lost, "priority": priority}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
