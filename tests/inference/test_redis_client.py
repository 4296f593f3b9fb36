"""The Redis client on a real Redis."""

import asyncio
from pathlib import Path

import pytest
from conftest import Redis
from maya1_tts.config import Settings
from maya1_tts.redis_client import connect


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_cancellation_is_never_lost(tmp_path: Path, pipelined: bool) -> None:
    """A task is cancelled in each step that the event loop takes for one command."""
    server = Redis(tmp_path)
    server.start()
    try:
        ends = asyncio.run(_cancelled_at_each_step(server.url, pipelined))
    finally:
        server.kill()
    assert ends["finished"] > 0  # later than the last step: all steps were tried
    assert ends["cancelled"] > 3
    assert ends["lost"] == 0


async def _cancelled_at_each_step(url: str, pipelined: bool) -> dict[str, int]:
    settings = Settings.model_validate({"environment": "development", "auth": "none", "redis_url": url})
    client = connect(settings, timeout=5)
    assert client
    ends = {"finished": 0, "cancelled": 0, "lost": 0}

    async def once() -> None:
        if pipelined:
            await client.pipeline(transaction=False).set("key", "value").execute()
        else:
            await client.get("key")

    await once()
    for steps in range(2000):
        task = asyncio.create_task(once())
        for _ in range(steps // 5):
            await asyncio.sleep(0)
        told = task.cancel()
        await asyncio.wait({task})
        ends["cancelled" if task.cancelled() else "lost" if told else "finished"] += 1
    await client.aclose()
    return ends
