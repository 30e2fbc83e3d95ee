"""The demo tenants of `sidecar dev`, their API keys, and what to try with them.

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
from sidecar.state import DevServers, State

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


def guide(servers: DevServers, found: Kept, state: State, catalogue_file: Path) -> str:
    """What to try, for a person: curl lines that show an allow, a near limit and a denial of the default catalogue."""
    free = found.keys["demo-free"]
    ask = f"curl -sS -o /dev/null -w '%{{http_code}} %header{{x-quota-status}}\\n' -H 'authorization: Bearer {free}'"
    return f"""
Quota Sidecar is ready; Ctrl-C stops everything.

  gateways ask    {servers.authz}   (/envoy/*, /nginx, /forward)
  applications    {servers.local}
  operations      {servers.ops}/metrics  /readyz
  billing API     {servers.control}     admin token {servers.admin_token}
  state           {state.path}
  catalogue       {catalogue_file}   (watched: a change is in force within a second)

API keys{"".join(f"{chr(10)}  {tenant:17} {key}" for tenant, key in found.keys.items())}

Try, as a gateway would ask:
  # allowed
  {ask} '{servers.authz}/envoy/v1/things'
  # near the limit: the free plan has 100 agent executions, and from the 80th on says so
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run?n=[1-80]' | uniq -c
  # denied, with the whole answer: the free plan has no admin API
  curl -isS -H 'authorization: Bearer {free}' '{servers.authz}/envoy/v1/admin/users'
  # denied: 101 executions begin a grace of 24 hours, and then they are over
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run?n=[81-101]' | uniq -c; sleep 1
  curl -sS -X POST '{servers.ops}/dev/clock' -d '{{"advance": "25h"}}'
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run'
  # what it came to
  sidecar usage demo-free --state {state.path}
"""


def _file(state: State) -> Path:
    return state.path / "secrets.json"


def _plan(catalogue: Catalogue, wanted: str, position: int) -> str:
    """The plan of that name, or the one at its place from cheap to dear in a catalogue with other names."""
    names = list(catalogue.plans)
    return wanted if wanted in catalogue.plans else names[position * (len(names) - 1) // (len(PLANS) - 1)]
