"""A child process for tests of the supervisor: counts one hit, is always ready, and does what its mode says.

Run as: supervised_child.py MODE DIRECTORY _worker --index N --parent PID --ready-fd N.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from sidecar import child
from sidecar.child import Component, OpsSocket
from sidecar.state import State
from sidecar.telemetry import CoreCounters, Reading


class Inside:
    """The smallest process that can be supervised."""

    def __init__(self, directory: Path, name: str) -> None:
        self.counters = CoreCounters()
        self.counters.snapshot_hits = 1
        self._note = directory / f"flushed-{name}"

    async def reading(self) -> Reading:
        return self.counters.reading(0)

    def components(self) -> dict[str, Component]:
        return {
            "listener": Component(ok=True),
            "store": Component(ok=False, required=False, detail="Redis is away"),
        }

    async def flush(self) -> None:
        self._note.touch()


async def main() -> None:
    mode, directory, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    index, parent, ready_fd = (int(value) for value in sys.argv[5::2])
    settings = child.begin(parent, ready_fd)
    if mode == "refuses":
        sys.exit(3)
    name = f"authz-{index}" if kind == "_worker" else "backoffice"
    (directory / f"secret-{name}").write_text(",".join(settings.admin_tokens) + os.environ.get("SIDECAR_X", ""))
    stop = asyncio.Event()
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ops = OpsSocket(State(settings.state).ops_socket(name), Inside(directory, name))
    await ops.start()
    child.report_ready()
    await stop.wait()
    with (directory / "stopped").open("a") as order:
        order.write(f"{name}\n")
    await ops.stop()


asyncio.run(main())
