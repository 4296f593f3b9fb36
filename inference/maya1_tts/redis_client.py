"""How this service talks to Redis."""

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from maya1_tts.config import Settings, read_secret


def connect(settings: Settings, timeout: float) -> redis.asyncio.Redis | None:
    """A client that connects when first used and never retries; None when no Redis is configured.

    timeout: seconds that one command may take. Raises ConfigError when the password file cannot be used.
    """
    file = settings.redis_password_file
    password = read_secret("REDIS_PASSWORD_FILE", file).decode() if file else None
    if not settings.redis_url:
        return None
    return redis.asyncio.from_url(
        settings.redis_url,
        password=password,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
    )
