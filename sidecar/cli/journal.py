"""`sidecar journal inspect PATH`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from sidecar.cli.target import show_json, table, with_json
from sidecar.errors import JournalUnusable
from sidecar.usage.recovery import inspect as read_journal


@click.group()
def journal() -> None:
    """Journals: what workers counted and the ledger may not have yet."""


@journal.command()
@click.argument("path", type=click.Path(path_type=Path))
@with_json
def inspect(path: Path, *, as_json: bool) -> None:
    """Print what a journal holds, of a living or a dead process; PATH is a file or a directory of them."""
    found = [(file, *read_journal(file)) for file in files(path)]
    if as_json:
        show_json(
            [
                {
                    "journal": str(file),
                    "writer": writer,
                    "windows": [{**window.key._asdict(), "counted": window.value} for window in windows],
                }
                for file, writer, windows in found
            ]
        )
        return
    for file, writer, windows in found:
        click.echo(f"{file}: writer {writer}, {len(windows)} windows")
        lines = [
            (
                window.key.tenant,
                window.key.series,
                _date(window.key.period),
                _date(window.key.hour * 3600),
                str(window.value),
            )
            for window in windows
        ]
        table([("TENANT", "SERIES", "PERIOD (UTC)", "HOUR (UTC)", "COUNTED"), *lines])


def files(path: Path) -> list[Path]:
    """The journal itself, or those in a directory; JournalUnusable when there is none."""
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.journal"))
    if not found:
        raise JournalUnusable(f"{path} holds no journals; name a journal or a state directory")
    return found


def _date(at_s: int) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d %H:%M")
