"""What one listener takes from its peers; every bound has an answer, given with the field."""

from __future__ import annotations

from msgspec import Struct, structs

# Redis takes up to eight, the journal and others that are adopted a few, the application and the supervisor the others.
DESCRIPTORS_KEPT = 64
READ_BYTES_MAX = 16_384  # a longer read is parsed in parts of this size, so that each can be bounded


class ListenerLimits(Struct, frozen=True, kw_only=True):
    """Bounds of a listener.

    A head or target below READ_BYTES_MAX that comes in one read is taken whole, whatever its bound.
    A head is measured from the read that it begins with: behind another request it may be longer by that read.
    """

    connections_max: int = 20_000  # closed at accept; fewer where descriptors are few
    head_bytes_max: int = 32_768  # 431, then closed
    url_bytes_max: int = 16_384  # 431, then closed
    headers_max: int = 200  # 431, then closed; trailers included
    body_bytes_max: int = 65_536  # 413, then closed; up to here bodies are discarded
    request_timeout_ms: int = 5_000  # from a request's first byte to its last: 408, then closed
    idle_timeout_ms: int = 75_000  # closed
    write_buffer_bytes: int = 65_536  # beyond it nothing is read from a peer until it has read
    write_timeout_ms: int = 10_000  # a peer that reads nothing for so long: closed

    @property
    def message_bytes_max(self) -> int:
        """Of a whole request: chunks of one byte take six, and neither chunk extensions nor trailers are free."""
        return self.head_bytes_max + 8 * self.body_bytes_max


def within(descriptors: int) -> ListenerLimits:
    """The bounds of a process that may open so many: connections leave DESCRIPTORS_KEPT of them to everything else."""
    limits = ListenerLimits()
    return structs.replace(limits, connections_max=max(1, min(limits.connections_max, descriptors - DESCRIPTORS_KEPT)))
