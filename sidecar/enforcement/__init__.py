"""Decision rules and lease arithmetic (pure), and the enforcer that joins them with the store."""
