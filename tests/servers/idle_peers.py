"""Many peers of a listener in a process of their own: `python -m tests.servers.idle_peers PORT IDLE KEPT SLOW`.

IDLE say nothing, KEPT ask once and stay, SLOW send a head byte by byte and never end it. Prints "open" when all are
connected and the kept ones answered, then "slow gone N" when so many were told that they are. Ends when it is killed.
"""

from __future__ import annotations

import asyncio
import resource
import sys

AT_ONCE = 200
HEAD = b"GET /envoy/v1/things HTTP/1.1\r\nHost: api.example.com\r\nx-tenant-id: made-up-peer\r\n"
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def raise_limit(descriptors: int) -> None:
    """Allow this process so many; only root may go beyond the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(hard, descriptors)))


async def connected(port: int, count: int) -> list[Peer]:
    found: list[Peer] = []
    while len(found) < count:
        batch = min(AT_ONCE, count - len(found))
        found += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(batch)))
    return found


async def main(port: int, idle: int, kept: int, slow: int) -> None:
    peers = await connected(port, idle)
    for reader, writer in await connected(port, kept):
        peers.append((reader, writer))
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
    slow_ones = await connected(port, slow)
    gone = 0

    async def drip(peer: Peer) -> None:
        nonlocal gone
        reader, writer = peer
        answer = asyncio.ensure_future(reader.read(65536))
        try:
            for byte in HEAD * 100:
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait([answer], timeout=0.5)
                if done and b" 408 " in answer.result():
                    gone += 1
                    print(f"slow gone {gone}", flush=True)
                if done:
                    return
        except ConnectionError:
            return
        finally:
            answer.cancel()

    dripping = [asyncio.ensure_future(drip(peer)) for peer in slow_ones]
    print("open", flush=True)
    await asyncio.gather(*dripping)
    await asyncio.Event().wait()


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:5]]
    raise_limit(sum(numbers[1:]) + 200)
    asyncio.run(main(*numbers))
