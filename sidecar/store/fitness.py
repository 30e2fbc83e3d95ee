"""Whether a Redis server can keep the promises: new enough, and never throwing keys away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from sidecar.errors import StoreRefused

if TYPE_CHECKING:
    from redis.asyncio import Redis

REDIS_OLDEST = (6, 2)


async def refuse_unfit(address: str, client: Redis) -> None:
    """Raise StoreRefused for a server that is too old or evicts keys; ``address`` is empty when there is only one."""
    where = f"Redis at {address}" if address else "Redis"
    version = str((await information(client, "server")).get("redis_version", "0.0"))
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_OLDEST:
        message = f"{where}, version {version}, is too old; 6.2 or newer is needed"
        raise StoreRefused(message)
    try:
        config = await client.config_get("maxmemory-policy")
    except ResponseError:
        return  # managed services hide CONFIG; their policy is the operator's promise
    policy = {str(name): str(value) for name, value in config.items()}.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        message = f"{where} has maxmemory-policy {policy}; set it to noeviction, or counts would be evicted"
        raise StoreRefused(message)


async def information(client: Redis, section: str) -> dict[str, Any]:
    """A section of INFO."""
    found: dict[str, Any] = await client.execute_command("INFO", section)  # type: ignore[no-untyped-call]
    return found
