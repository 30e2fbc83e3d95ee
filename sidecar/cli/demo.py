"""The demo tenants of `sidecar dev` and their API keys.

Guarantees: tenants and keys stay the same for a state directory; what somebody changed about them is left alone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec
from msgspec import Struct

from sidecar.catalogue.model import Catalogue
from sidecar.ledger import keys, tenants
from sidecar.ledger.transaction import Transaction
from sidecar.state import State

ACTOR = "sidecar dev"
PLANS = ("free", "standard", "enterprise")


class Kept(Struct, kw_only=True):
    """Secrets of one state directory: the admin token and the API key of each demo tenant."""

    admin_token: str
    keys: dict[str, str] = {}


def kept(state: State) -> Kept:
    """The secrets of the state directory, made at the first start."""
    try:
        return msgspec.json.decode(_file(state).read_bytes(), type=Kept)
    except FileNotFoundError:
        made = Kept(admin_token=secrets.token_urlsafe(24))
        keep(state, made)
        return made


def keep(state: State, secrets_of_state: Kept) -> None:
    """Write the secrets where only their owner reads them."""
    fresh = _file(state).with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(secrets_of_state))
    fresh.replace(_file(state))


async def put_tenants(tx: Transaction, catalogue: Catalogue, found: Kept) -> None:
    """Make the demo tenants and their keys where they are missing; new keys are added to ``found``."""
    known = {row.tenant for row in await tenants.by_ids(tx, [f"demo-{plan}" for plan in PLANS])}
    for position, wanted in enumerate(PLANS):
        tenant = f"demo-{wanted}"
        if tenant not in known:
            await tenants.put(tx, tenant, plan=_plan(catalogue, wanted, position), actor=ACTOR)
        valid = {row.sha256 for row in await keys.of_tenant(tx, tenant) if not row.revoked_s}
        secret = found.keys.get(tenant, "")
        if hashlib.sha256(secret.encode()).hexdigest() not in valid:
            found.keys[tenant] = (await keys.create(tx, tenant, actor=ACTOR, name="demo")).secret


def _file(state: State) -> Path:
    return state.path / "secrets.json"


def _plan(catalogue: Catalogue, wanted: str, position: int) -> str:
    """The plan of that name, or the one at its place from cheap to dear in a catalogue with other names."""
    names = list(catalogue.plans)
    return wanted if wanted in catalogue.plans else names[position * (len(names) - 1) // (len(PLANS) - 1)]
