"""``sidecar stripe events`` and ``sidecar stripe replay``: what Stripe sent, and another try for what failed."""

from __future__ import annotations

import datetime as dt

import click

from sidecar.billing.webhooks import events
from sidecar.billing.webhooks.events import StoredEvent
from sidecar.cli.target import actor, find, show_json, table, wait, with_json, with_state


@click.command("events")
@click.option("--dead", is_flag=True, help="Only dead letters: those that failed too often.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@with_state
@with_json
def list_events(limit: int, state: str | None, *, dead: bool, as_json: bool) -> None:
    """Print the events that Stripe sent, the newest first."""
    target = find(state)

    async def work() -> list[StoredEvent]:
        async with target.transaction() as tx:
            return await events.page(tx, state="dead" if dead else "", most=limit)

    found = wait(work())
    if as_json:
        show_json(found)
        return
    header = ("ID", "TYPE", "OBJECT", "RECEIVED", "STATE", "TRIES", "PROBLEM")
    rows = [
        (one.id, one.kind, one.object, _date(one.received_s), one.state, str(one.tries), one.problem) for one in found
    ]
    table([header, *rows])


@click.command("replay")
@click.argument("event", metavar="ID", required=False)
@click.option("--dead", is_flag=True, help="All dead letters.")
@with_state
@with_json
def replay(event: str | None, state: str | None, *, dead: bool, as_json: bool) -> None:
    """Put an event, or all dead letters, in line again; a running backoffice deals with them."""
    if dead is (event is not None):
        raise click.UsageError("give the ID of an event, or --dead")
    target = find(state)

    async def work() -> list[str]:
        async with target.transaction() as tx:
            return await events.replay(tx, event or "", actor=actor())

    replayed = wait(work())
    if as_json:
        show_json({"replayed": replayed})
    else:
        click.echo(f"{len(replayed)} put in line again")


def _date(at_s: int) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
