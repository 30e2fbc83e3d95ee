"""The hidden commands by which the supervisor starts its children.

Guarantees: a worker imports nothing of the ledger, of billing or of Stripe, which would be most of its memory.
"""

from __future__ import annotations

import gc

import click

from sidecar import child, logs
from sidecar.settings import ROLES


@click.command(hidden=True)
@click.option("--index", type=int, required=True)
@click.option("--parent", type=int, required=True)
@click.option("--ready-fd", type=int, required=True)
def worker(index: int, parent: int, ready_fd: int) -> None:
    """Decide for gateways; started by the supervisor."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, f"authz-{index}")
    gc.disable()  # importing makes no garbage, and the collector would look at all of it again and again
    from sidecar.worker import run_worker  # noqa: PLC0415 - not before the parent's death can be noticed

    gc.enable()
    run_worker(found, index)


@click.command(hidden=True)
@click.option("--index", type=int, required=True)
@click.option("--parent", type=int, required=True)
@click.option("--ready-fd", type=int, required=True)
def backoffice(index: int, parent: int, ready_fd: int) -> None:  # noqa: ARG001 - there is one
    """Flush and serve the billing API; started by the supervisor."""
    found = child.begin(parent, ready_fd)
    logs.configure(found.log_level, "backoffice")
    from sidecar.app import run_backoffice  # noqa: PLC0415 - the same

    run_backoffice(found, tuple(role for role in ROLES if role != "authz" and found.has_role(role)))
