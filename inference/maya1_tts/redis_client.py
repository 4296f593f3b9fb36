"""How this service talks to Redis."""

import asyncio
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from maya1_tts.config import Settings, read_secret


class Once(Retry):
    """One try for each command, in which a cancellation is never lost.

    The client sends with `asyncio.wait_for`. Before Python 3.12 that returns as if nothing had happened when
    its task is cancelled in the moment in which the sending is done (CPython issue 86296), and a loop around
    it goes on for ever.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    async def call_with_retry(self, *arguments: Any, **named: Any) -> Any:
        task = asyncio.current_task()
        assert task  # noqa: S101
        before = task.cancelling()
        try:
            return await super().call_with_retry(*arguments, **named)
        finally:
            if task.cancelling() > before:
                raise asyncio.CancelledError


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
        retry=Once(),
    )
