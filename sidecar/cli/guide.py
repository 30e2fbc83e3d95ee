"""What `sidecar dev` tells a person once it is ready: where everything is, and what to try.

Guarantees: what a line promises is what it shows: the promises are those of the default catalogue on tenants that
            have used nothing, and anything else is told as it is.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from msgspec import Struct

from sidecar.catalogue.model import Catalogue
from sidecar.cli.catalogue import default_file
from sidecar.cli.demo import PLANS, Kept
from sidecar.control.report import usage_report
from sidecar.ledger import plans, tenants
from sidecar.ledger.transaction import Transaction
from sidecar.state import DevServers, State


class Scene(Struct, frozen=True):
    """What is in force: the file's own text or another, the default catalogue or not, and how the tenants stand."""

    file: str
    followed: bool
    default: bool
    plans: dict[str, str]  # demo tenant -> plan, empty when the catalogue does not have it any more
    used: str  # of demo-free, for people; empty: nothing
    changed: bool  # somebody changed demo-free


async def scene(tx: Transaction, catalogue: Catalogue, file: Path, now_s: int) -> Scene:
    """Look at the ledger, once the demo tenants are in it."""
    version = await plans.current(tx)
    document = version.document if version is not None else ""
    rows = {row.tenant: row for row in await tenants.by_ids(tx, [f"demo-{plan}" for plan in PLANS])}
    free = rows["demo-free"]
    known = free.plan in catalogue.plans or catalogue.default_plan in catalogue.plans
    limits = (await usage_report(tx, catalogue, free.tenant, now_s)).limits if known else []
    return Scene(
        file=str(file),
        followed=_text(file) == document,
        default=_text(default_file()) == document,
        plans={name: row.plan if row.plan in catalogue.plans else "" for name, row in rows.items()},
        used=", ".join(f"{one.used:f} of {one.included or 0:f} {one.limit}" for one in limits if one.used),
        changed=bool(free.overrides) or free.status != "active" or free.plan != "free",
    )


def text(servers: DevServers, found: Kept, state: State, seen: Scene) -> str:
    """The guide. Its curl lines are only there where the default catalogue is in force."""
    if seen.followed:
        catalogue = f"{seen.file}   (watched: a change is in force within a second)"
    else:
        catalogue = f"another one than in {seen.file}, which is watched; saving it puts it in force"
    keys = "".join(
        f"\n  {tenant:17} {key}   {_standing(seen.plans.get(tenant, ''))}" for tenant, key in found.keys.items()
    )
    return f"""
Quota Sidecar is ready; Ctrl-C stops everything.

  gateways ask    {servers.authz}   (/envoy/*, /nginx, /forward)
  applications    {servers.local}
  operations      {servers.ops}/metrics  /readyz
  billing API     {servers.control}     admin token {servers.admin_token}
  state           {state.path}
  catalogue       {catalogue}

API keys{keys}

{_to_try(servers, found.keys["demo-free"], seen)}
  # what it came to
  {program()} usage demo-free --state {shlex.quote(str(state.path))}
"""


def program() -> str:
    """How this program can be started again from the directory it was started in."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m sidecar"
    on_path = shutil.which("sidecar")
    if on_path is not None and started.exists() and started.samefile(on_path):
        return "sidecar"
    return shlex.quote(str(started))


def _to_try(servers: DevServers, free: str, seen: Scene) -> str:
    if not seen.default:
        return "Try the routes of your catalogue, with the headers that its identity rules name."
    ask = f"curl -sS -o /dev/null -w '%{{http_code}} %header{{x-quota-status}}\\n' -H 'authorization: Bearer {free}'"
    lines = f"""  # allowed
  {ask} '{servers.authz}/envoy/v1/things'
  # near the limit: the free plan has 100 agent executions, and from the 80th on says so
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run?n=[1-80]' | uniq -c
  # denied, with the whole answer: the free plan has no admin API
  curl -isS -H 'authorization: Bearer {free}' '{servers.authz}/envoy/v1/admin/users'
  # denied: 101 executions begin a grace of 24 hours, and then they are over
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run?n=[81-101]' | uniq -c; sleep 1
  curl -sS -X POST '{servers.ops}/dev/clock' -d '{{"advance": "25h"}}'
  {ask} -X POST '{servers.authz}/envoy/v1/agents/a/run'"""
    if not seen.used and not seen.changed:
        return f"Try, as a gateway would ask:\n{lines}"
    why = f"has used {seen.used}" if seen.used else "is not what it was at first"
    return (
        f"demo-free goes on where it was and {why}.\n"
        f"Try, as a gateway would ask; what is promised here is what a new state (--state DIR) shows:\n{lines}"
    )


def _standing(plan: str) -> str:
    return f"plan {plan}" if plan else "its plan is not in this catalogue"


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
