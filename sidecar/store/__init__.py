"""Redis: keys, Lua scripts and typed calls."""
