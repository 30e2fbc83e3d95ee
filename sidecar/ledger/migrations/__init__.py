"""Forward-only migrations: numbered scripts, run by alembic in one transaction."""
