"""Which catalogue file a `sidecar dev` follows: kept in its state directory from one start to the next.

Guarantees: a start without --catalogue goes on with the file of the last one, and applies what was written to it
            meanwhile; what somebody put in force by other means is never replaced by a file that did not change.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec
from msgspec import Struct

from sidecar import logs
from sidecar.control.catalogue_file import CatalogueFile
from sidecar.ledger import plans
from sidecar.ledger.connection import Ledger
from sidecar.state import State

log = logging.getLogger(__name__)


class Followed(Struct, frozen=True):
    """A file, and the SHA-256 of the text of it that was applied last."""

    path: str
    digest: str


async def follow(state: State, named: str | None, default: Path, ledger: Ledger) -> CatalogueFile:
    """The file to watch, put in force if it was named, or changed since it was applied last, or is the first one.

    CatalogueInvalid when a named or first file is bad; one that became bad meanwhile is refused like any bad change.
    """
    last = _read(state)
    path = _absolute(named or (last.path if last is not None else str(default)))
    file = CatalogueFile(path, ledger, lambda text: _write(state, Followed(str(path), _digest(text))))
    async with ledger.transaction() as tx:
        first = await plans.current(tx) is None
    if named or first:
        await file.apply()
    elif last is not None and path.exists():
        text = path.read_bytes().decode(errors="replace")
        if _digest(text) == last.digest:
            file.seen()
        else:
            await file.look()
    else:
        if last is not None:
            log.warning("the catalogue file is gone; what it said stays in force", extra=logs.fields(file=str(path)))
        file.seen()
    return file


def _absolute(path: str) -> Path:
    return Path(path).absolute()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(state: State) -> Followed | None:
    try:
        return msgspec.json.decode(_file(state).read_bytes(), type=Followed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _write(state: State, followed: Followed) -> None:
    fresh = _file(state).with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(followed))
    fresh.replace(_file(state))


def _file(state: State) -> Path:
    return state.path / "followed.json"
