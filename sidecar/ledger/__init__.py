"""Postgres, the record: named queries, flusher passes, projection and migrations."""
