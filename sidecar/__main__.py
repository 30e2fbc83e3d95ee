"""`python -m sidecar` is `sidecar`, and what a supervisor starts as its children."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] in (["_worker"], ["_backoffice"]):
        from sidecar import children  # the command line is nothing to a child

        children.run(sys.argv[1:])
    else:
        from sidecar.cli import main

        main(prog_name="sidecar")
