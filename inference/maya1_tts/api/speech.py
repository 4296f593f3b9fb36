"""POST /v1/audio/speech."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from maya1_tts.api.access import allowed
from maya1_tts.api.failures import ClientGone
from maya1_tts.api.service import Service
from maya1_tts.audio import MEDIA_TYPES
from maya1_tts.request import parse, read_body, to_order
from maya1_tts.studio import Speech, Studio

T = TypeVar("T")


def speech_routes(service: Service) -> APIRouter:
    router = APIRouter(dependencies=[allowed(service, "speak")])

    @router.post("/v1/audio/speech")
    async def speech(request: Request) -> Response:
        begin = time.perf_counter()
        studio, engine = service.studio, service.engine
        body = await read_body(request, service.settings.max_body_bytes)
        asked = parse(body, request.headers.get("content-type", ""))
        order = to_order(asked, service.settings, engine)
        spoken = studio.listen(order)
        pieces = spoken.stream()
        try:
            # The headers wait for the first sound, so that whatever fails before it is a real HTTP error.
            first = await _unless_gone(request, anext(pieces))
            ttfa = time.perf_counter() - begin
            service.metrics.ttfa.labels(spoken.cache).observe(ttfa)
            headers = {
                "X-Engine": engine.name,
                "X-Voice": order.voice.id,
                "X-Cache": spoken.cache,
                "X-Sample-Rate": str(order.voice.sample_rate),
            }
            request.state.log |= {"voice": order.voice.id, "format": order.format, "cache": spoken.cache}
            request.state.log |= {"chars": len(order.text), "ttfa_seconds": round(ttfa, 4)}
            media_type = MEDIA_TYPES[order.format]
            if asked.stream or asked.stream_format == "audio":
                rest = _leave_after(studio, spoken, first, pieces)
                return StreamingResponse(rest, media_type=media_type, headers=headers)
            complete = await _unless_gone(request, spoken.whole())
            headers["X-Audio-Duration-Seconds"] = f"{spoken.seconds:.3f}"
            headers["X-TTFA-Seconds"] = f"{ttfa:.4f}"
            headers["X-RTF"] = f"{spoken.busy_seconds / spoken.seconds:.4f}"
        except BaseException:
            studio.leave(spoken)
            raise
        studio.leave(spoken)
        return Response(complete, media_type=media_type, headers=headers)

    return router


async def _unless_gone(request: Request, result: Awaitable[T]) -> T:
    """Wait for the result, but not longer than the client does. Raises ClientGone."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted = asyncio.ensure_future(result)
    gone = asyncio.create_task(disconnected())
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientGone
        return wanted.result()
    finally:
        wanted.cancel()
        gone.cancel()


async def _leave_after(
    studio: Studio, spoken: Speech, first: bytes, pieces: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        yield first
        async for piece in pieces:
            yield piece
    finally:
        studio.leave(spoken)
