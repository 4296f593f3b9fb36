"""Where cached bytes are kept: Redis, and an S3 object store behind it.

The service never depends on a tier. Each has a circuit breaker: any failure, a time-out too, clears `up`, and
only the background probe sets it again; meanwhile the tier answers at once that it has nothing.
"""

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from obstore.exceptions import BaseError as ObstoreError
from obstore.store import S3Store
from redis.exceptions import RedisError

from maya1_tts.config import Settings, read_secret
from maya1_tts.errors import shown
from maya1_tts.metrics import Metrics
from maya1_tts.redis_client import connect

REDIS_TIMEOUT_SECONDS = 0.25  # what one request loses at most when Redis hangs
BLOCK_SECONDS = 0.5  # how long one command may wait inside Redis
OBJECT_GET_SECONDS = 0.5  # what one miss loses at most when the object store hangs
OBJECT_PUT_SECONDS = 10.0  # nobody waits for these
log = logging.getLogger(__name__)


class Tier(ABC):
    """Bytes under keys. No method raises when the tier fails."""

    name: ClassVar[str]
    failures: ClassVar[tuple[type[Exception], ...]]
    probe_seconds: ClassVar[float]

    def __init__(self, metrics: Metrics) -> None:
        self.up = False
        self._metrics = metrics
        metrics.cache_up.labels(self.name).set(0)
        metrics.cache_errors.labels(self.name)

    async def get(self, key: str) -> bytes | None:
        value = None
        if self.up:
            with self.guard("get"):
                value = await self._get(key)
        return value

    async def set(self, key: str, value: bytes) -> None:
        if self.up:
            with self.guard("set"):
                await self._set(key, value)
                self._metrics.cache_stored_bytes.labels(self.name).inc(len(value))

    async def delete(self, key: str) -> None:
        if self.up:
            with self.guard("delete"):
                await self._delete(key)

    @contextlib.contextmanager
    def guard(self, operation: Literal["get", "set", "delete", "probe", "flight"]) -> Iterator[None]:
        """Around whatever may fail with the tier. A failure ends the block and is not raised."""
        begin = time.perf_counter()
        try:
            yield
        except self.failures as error:
            self._metrics.cache_errors.labels(self.name).inc()
            self._metrics.cache_up.labels(self.name).set(0)
            if self.up:
                reason = f"{type(error).__name__}: {shown(str(error), 200)}"
                log.warning("cache tier %s is down: %s", self.name, reason)
            self.up = False
        finally:
            if operation in ("get", "set"):
                self._metrics.cache_seconds.labels(self.name, operation).observe(time.perf_counter() - begin)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe in the background for as long as the context is open."""
        await self._probe()
        probe = asyncio.create_task(self._probe_forever())
        try:
            yield
        finally:
            probe.cancel()
            await self._close()

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self.probe_seconds)
            await self._probe()

    async def _probe(self) -> None:
        with self.guard("probe"):
            await self._ping()
            if not self.up:
                log.info("cache tier %s is up", self.name)
            self.up = True
            self._metrics.cache_up.labels(self.name).set(1)

    @abstractmethod
    async def _get(self, key: str) -> bytes | None: ...

    @abstractmethod
    async def _set(self, key: str, value: bytes) -> None: ...

    @abstractmethod
    async def _delete(self, key: str) -> None: ...

    @abstractmethod
    async def _ping(self) -> None: ...

    async def _close(self) -> None:
        return None


class RedisTier(Tier):
    name = "redis"
    failures = (RedisError, OSError)
    probe_seconds = 1.0

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError when the password file cannot be used."""
        super().__init__(metrics)
        self._ttl = settings.cache_ttl_seconds
        client = connect(settings, REDIS_TIMEOUT_SECONDS)
        waiting = connect(settings, BLOCK_SECONDS + REDIS_TIMEOUT_SECONDS)  # for commands that block
        if client is None or waiting is None:
            raise ValueError("no Redis is configured")
        self.client, self.waiting = client, waiting

    async def _get(self, key: str) -> bytes | None:
        value: Any = await self.client.get(key)
        return bytes(value) if value is not None else None

    async def _set(self, key: str, value: bytes) -> None:
        await self.client.set(key, value, ex=self._ttl)

    async def _delete(self, key: str) -> None:
        await self.client.delete(key)

    async def _ping(self) -> None:
        await self.client.ping()

    async def _close(self) -> None:
        await self.client.aclose()
        await self.waiting.aclose()


class ObjectTier(Tier):
    """An S3 bucket, addressed by path. Expiry is a life cycle rule of the bucket."""

    name = "object_store"
    failures = (ObstoreError, OSError, ValueError)
    probe_seconds = 5.0

    def __init__(self, url: str, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError when a credentials file cannot be used."""
        super().__init__(metrics)

        def secret(variable: str, path: Path | None) -> dict[str, str]:
            name = variable.removeprefix("OBJECT_STORE_").removesuffix("_FILE").lower()
            return {name: read_secret(variable, path).decode()} if path else {}

        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        endpoint = settings.object_store_endpoint
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            config={  # type: ignore[arg-type]
                "region": settings.object_store_region,
                **({"endpoint": endpoint} if endpoint else {}),
                **secret("OBJECT_STORE_ACCESS_KEY_ID_FILE", settings.object_store_access_key_id_file),
                **secret("OBJECT_STORE_SECRET_ACCESS_KEY_FILE", settings.object_store_secret_access_key_file),
            },
            client_options={"allow_http": bool(endpoint and endpoint.startswith("http://"))},
            retry_config={"max_retries": 0},  # the breaker decides, not the library
        )

    async def _get(self, key: str) -> bytes | None:
        async with asyncio.timeout(OBJECT_GET_SECONDS):
            try:
                found = await self._store.get_async(_path(key))
            except FileNotFoundError:
                return None
            return bytes(await found.bytes_async())

    async def _set(self, key: str, value: bytes) -> None:
        async with asyncio.timeout(OBJECT_PUT_SECONDS):
            await self._store.put_async(_path(key), value)

    async def _delete(self, key: str) -> None:
        async with asyncio.timeout(OBJECT_PUT_SECONDS):
            await self._store.delete_async(_path(key))

    async def _ping(self) -> None:
        if self.up:  # then its use tells
            return
        async with asyncio.timeout(OBJECT_GET_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                await self._store.head_async("probe")


def _path(key: str) -> str:
    return key.replace(":", "/")
