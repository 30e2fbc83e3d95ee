"""The programs that the supervisor starts: `python -m sidecar _worker` and `_backoffice`. No command of its own accord.

Guarantees: a worker imports nothing of the ledger, of billing, of Stripe or of the command line, which would be most of
            its memory and of its time to be ready.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from sidecar import child, logs
from sidecar.errors import SidecarError, complain
from sidecar.settings import ROLES


def _worker(index: int, parent: int, ready_fd: int) -> None:
    """Decide for gateways."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, f"authz-{index}")
    gc.disable()  # importing makes no garbage, and the collector would look at all of it again and again
    from sidecar.worker import run_worker  # noqa: PLC0415 - not before the parent's death can be noticed

    gc.enable()
    run_worker(found, index)


def _backoffice(index: int, parent: int, ready_fd: int) -> None:  # noqa: ARG001 - there is one
    """Flush and serve the billing API."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, "backoffice")
    from sidecar.app import run_backoffice  # noqa: PLC0415 - the same

    run_backoffice(found, tuple(role for role in ROLES if role != "authz" and found.has_role(role)))


PROGRAMS = {"_worker": _worker, "_backoffice": _backoffice}


def run(arguments: Sequence[str]) -> None:
    """Run the child that ``supervisor.command`` describes."""
    program, _, index, _, parent, _, ready_fd = arguments
    try:
        PROGRAMS[program](int(index), int(parent), int(ready_fd))
    except SidecarError as error:
        sys.exit(complain(error))
