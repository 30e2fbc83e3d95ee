"""Quota Sidecar: decides, counts and bills API requests beside a gateway."""

__version__ = "0.1.0"
