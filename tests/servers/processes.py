"""Processes below a running `sidecar dev`, found by /proc."""

from __future__ import annotations

from pathlib import Path

from tests.servers.sidecar_dev import SidecarDev


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def everybody(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(below for child in family(pid)[1:] for below in everybody(child))]


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def backoffice_of(dev: SidecarDev) -> int:
    """The process of the flusher and the control API; 0 while there is none."""
    for pid in family(dev.pid)[1:]:
        try:
            if b"_backoffice" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return 0
