"""Bytes to a gateway as they are, and what comes back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

QUIET_S = 0.4  # longer than a gateway and an application on this machine take to answer


async def spoken(port: int, raw: bytes) -> bytes:
    """Send the bytes on a connection of their own and return all that comes back until it is quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    with suppress(ConnectionError):
        writer.write(raw)
        await writer.drain()
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(QUIET_S):
                    more = await reader.read(65536)
                if not more:
                    break
                heard += more
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return heard
