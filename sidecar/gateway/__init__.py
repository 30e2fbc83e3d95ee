"""The decision listener: one small adapter per gateway dialect, identity and answer headers."""
