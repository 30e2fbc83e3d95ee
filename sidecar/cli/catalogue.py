"""`sidecar check` and `sidecar catalogue apply/show/diff`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from sidecar import settings
from sidecar.catalogue.diff import diff as differences
from sidecar.catalogue.doubts import doubts
from sidecar.catalogue.load import parse, read
from sidecar.catalogue.model import Catalogue
from sidecar.cli.target import Target, actor, find, show_json, wait, with_json, with_state
from sidecar.control import catalogues
from sidecar.errors import CatalogueInvalid, NotFound, SettingsInvalid
from sidecar.ledger import plans
from sidecar.ledger.plans import PlanVersion

DEFAULT = "agent_platform.yaml"


def default_file() -> Path:
    """The example that `sidecar dev` starts with."""
    return Path(str(resources.files("sidecar.catalogue") / "examples" / DEFAULT))


def text_of(file: str) -> str:
    """The text of a catalogue file; CatalogueInvalid when it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueInvalid([f"{file}: cannot be read: {error}; name a readable UTF-8 file"]) from error


@click.command()
@click.argument("file", required=False)
def check(file: str | None) -> None:
    """Validate a catalogue and print every error with its line; without FILE the one the settings name."""
    import os  # noqa: PLC0415 - only where the environment is read

    name = file or settings.load(os.environ, roles=()).catalogue_file
    if not name:
        raise SettingsInvalid("no catalogue is named; give a FILE or set SIDECAR_CATALOGUE_FILE")
    found = read(name)
    plans_and_limits = ", ".join(f"{plan.name} ({len(plan.limits)} limits)" for plan in found.plans.values())
    click.echo(f"{name}: valid; {len(found.metrics)} metrics, {len(found.routes)} routes, plans {plans_and_limits}")
    _show_doubts(name, found)


@click.group()
def catalogue() -> None:
    """Plans, metrics and routes: apply, show and compare versions."""


@catalogue.command()
@click.argument("file")
@with_state
@with_json
def apply(file: str, state: str | None, *, as_json: bool) -> None:
    """Put FILE in force as a new version; running sidecars have it within a second."""
    version = wait(_apply(find(state), file))
    if as_json:
        show_json({"revision": version.revision, "created": version.created_s})
    else:
        click.echo(f"catalogue revision {version.revision} is in force")
    _show_doubts(file, parse(version.document, file))


@catalogue.command()
@click.option("--revision", type=click.IntRange(min=1), help="An older version.")
@with_state
@with_json
def show(revision: int | None, state: str | None, *, as_json: bool) -> None:
    """Print the catalogue in force as it was applied."""
    version = wait(_version(find(state), revision))
    if as_json:
        show_json(version)
    else:
        click.echo(version.document, nl=not version.document.endswith("\n"))


@catalogue.command()
@click.argument("file")
@with_state
@with_json
def diff(file: str, state: str | None, *, as_json: bool) -> None:
    """Print what would change if FILE were applied."""
    version, new = wait(_compared(find(state), file))
    lines = differences(parse(version.document, f"revision {version.revision}"), new)
    if as_json:
        show_json({"revision": version.revision, "changes": lines})
    else:
        click.echo("\n".join(lines) if lines else f"no change against revision {version.revision}")


def _show_doubts(name: str, found: Catalogue) -> None:
    for doubt in doubts(found):
        click.echo(f"{name}: doubtful: {doubt}", err=True)


async def _apply(target: Target, file: str) -> PlanVersion:
    text = text_of(file)
    parse(text, file)  # a bad file is told before Postgres is asked for
    async with target.transaction() as tx:
        return await catalogues.apply(tx, text, file, actor=actor())


async def _compared(target: Target, file: str) -> tuple[PlanVersion, Catalogue]:
    """The version in force, and a file that could be put in force instead of it."""
    text = text_of(file)
    parse(text, file)
    version = await _version(target, None)
    async with target.transaction() as tx:
        return version, await catalogues.checked(tx, text, file)


async def _version(target: Target, revision: int | None) -> PlanVersion:
    async with target.transaction() as tx:
        version = await plans.current(tx) if revision is None else await plans.get(tx, revision)
    if version is None:
        raise NotFound("no catalogue is applied; run `sidecar catalogue apply FILE`")
    return version
