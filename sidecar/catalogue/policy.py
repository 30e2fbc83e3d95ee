"""One catalogue in force: what the gateway and the enforcer read, swapped in a single assignment."""

from __future__ import annotations

from msgspec import Struct

from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.routes import RouteTable


class Policy(Struct, frozen=True):
    """A catalogue with its compiled route table and the revision under which it was published."""

    catalogue: Catalogue
    routes: RouteTable
    revision: int
