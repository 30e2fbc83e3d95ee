"""A steady load from many connections, beside which open_loop.py samples latencies.

wrk with think times: each of some hundred connections waits after an answer for 5 to 15 ms by chance, then asks again.
Together they ask at a rate that a stall of the server hardly changes, and that a generator in C holds on one core
together with Redis, Postgres and the rest. It asks for real-time priority, so that those do not make it come in bursts.

Guarantees: the rate is what was asked for as long as answers take less than a millisecond, and it is told.
Gives up:   latencies of its own: those who wait do not ask meanwhile, so a stall of more than 5 ms is met by fewer of
            them than were due. The samples beside it are due whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence

from bench import open_loop, wrk

THINK_MS = (5, 15)
# wrk ends thinking on whole milliseconds, and all who do ask at once. Two threads, whose milliseconds begin apart, send
# half of that at a time: a control's p99 is 180 us with two and 350 us with one.
THREADS = 2
SETTLE_S = 0.5
PRIORITY = 2
SCRIPT = """
local asked, number = {%s}, 0
request = function()
  number = number %% #asked + 1
  return asked[number]
end
"""
THINKING = "delay = function() return math.random(%d, %d) end\n"


def script(tenants: Sequence[str], *, thinking: bool = False) -> str:
    """For wrk: requests of these tenants in turn."""
    asked = ",\n".join(json.dumps(open_loop.request(tenant).decode()) for tenant in tenants)
    return SCRIPT % asked + (THINKING % THINK_MS if thinking else "")


@contextlib.contextmanager
def load(port: int, rate: int, tenants: Sequence[str]) -> Iterator[wrk.Load]:
    """Meanwhile the server gets that many requests a second; afterwards the load says how many it were."""
    connections = round(rate * sum(THINK_MS) / 2 / 1_000)
    if connections < THREADS:
        raise SystemExit(f"no load of {rate} requests/s can be made: the server answers too few, or hardly answers")
    asked = script(tenants, thinking=True)
    with wrk.running(f"http://127.0.0.1:{port}/", asked, connections, threads=THREADS, priority=PRIORITY) as told:
        time.sleep(SETTLE_S)
        yield told
    told.check(open_loop.LOST_MAX)
