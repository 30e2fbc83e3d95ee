"""Whether a Redis server can keep the promises: it lets us in, is new enough, and never throws keys away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, ResponseError

from sidecar.errors import StoreRefused

if TYPE_CHECKING:
    from redis.asyncio import Redis

REDIS_OLDEST = (6, 2)
LOGIN_REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)


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


def refuse_login(address: str, error: BaseException | None) -> None:
    """Raise StoreRefused when Redis, or a sentinel, answered that this user may not; else it is an outage."""
    where = f"Redis at {address}" if address else "Redis"
    cause = error
    while cause is not None:
        if isinstance(cause, NoPermissionError):
            message = f"{where} denies its user a command: {cause}; give it the rules of k8s/redis-acl.conf"
            raise StoreRefused(message) from error
        if isinstance(cause, LOGIN_REFUSED):
            message = f"{where} does not accept the login: {cause}; mend user and password in SIDECAR_REDIS_URL"
            raise StoreRefused(message) from error
        cause = cause.__cause__


async def information(client: Redis, section: str) -> dict[str, Any]:
    """A section of INFO."""
    found: dict[str, Any] = await client.execute_command("INFO", section)  # type: ignore[no-untyped-call]
    return found
