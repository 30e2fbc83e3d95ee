"""The command line: one noun a file; every command finds its installation the same way.

Guarantees: an error is one line on stderr that says what to do, and exit code 1; bad usage or settings are exit code 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from sidecar import __version__
from sidecar.errors import SidecarError, complain

# Command -> module; a module is imported when its command runs, since half of what they need is slow to import.
COMMANDS = {
    "dev": "dev",
    "serve": "serve",
    "check": "catalogue",
    "migrate": "migrate",
    "catalogue": "catalogue",
    "tenant": "tenant",
    "key": "key",
    "usage": "usage",
    "price": "price",
    "flush": "flush",
    "verify": "verify",
    "stripe": "stripe",
    "journal": "journal",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click asks so
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sidecar.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises on purpose becomes a line and an exit code."""
        try:
            return super().invoke(ctx)
        except SidecarError as error:
            ctx.exit(complain(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """Decide, count and bill API requests beside a gateway."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line as a program."""
    main(args=arguments, prog_name="sidecar")
    sys.exit(0)
