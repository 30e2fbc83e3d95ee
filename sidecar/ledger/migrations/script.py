"""Runs one migration script: a .sql file of many statements, sent as it is."""

from __future__ import annotations

from importlib.resources import files

from alembic import op


def run(name: str) -> None:
    """Execute a file of versions/ in the migration's transaction.

    asyncpg prepares what it is given through SQLAlchemy, and a prepared statement is only one statement; its own
    ``execute`` without arguments takes a whole script.
    """
    text = files("sidecar.ledger.migrations").joinpath("versions", name).read_text(encoding="utf-8")
    adapted = op.get_bind().connection.dbapi_connection
    if adapted is None:
        raise RuntimeError("the migration has no connection")
    adapted.run_async(lambda connection: connection.execute(text))
