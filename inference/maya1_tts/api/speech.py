"""POST and GET /v1/audio/speech."""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from maya1_tts import tracing
from maya1_tts.admission import Claim
from maya1_tts.api.access import allowed
from maya1_tts.api.document import DEADLINE, EVENTS, NOT_MODIFIED, audio, body, errors, query
from maya1_tts.api.failures import ClientGone
from maya1_tts.api.service import Service
from maya1_tts.audio import MEDIA_TYPES, Format
from maya1_tts.engine import Timing
from maya1_tts.errors import ApiError
from maya1_tts.playout import measured
from maya1_tts.request import FileRequest, SpeechRequest, from_query, parse, read_body, to_order
from maya1_tts.studio import Listener, Order, Speech, Studio

TOKENS_PER_SECOND = 20  # about what OpenAI counts for its own speech; the engines here have no common token
DELTA_BYTES = 49152  # of audio in one event: a hit comes in one piece, which may be megabytes
T = TypeVar("T")


class Segment(BaseModel):
    """`text` as it was spoken; `start` and `end` in seconds, the pause behind it included."""

    text: str
    start: float
    end: float


class Usage(BaseModel):
    """Characters of the text, and twentieths of a second of audio."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechWithTimestamps(BaseModel):
    """The answer to `timestamps` without a stream. audio: the file in base64."""

    audio: str
    response_format: Format
    sample_rate: int
    audio_seconds: float
    segments: list[Segment]
    usage: Usage


class DirectRoute(APIRoute):
    """Its dependencies and its endpoint take the request, so nobody has to look for what else they want.

    FastAPI's search for that is a fifth of what a cache hit costs. Dependencies are those of the router that
    the route is written in; what `include_router` might add is not asked.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        checks = [dependency.call for dependency in self.dependant.dependencies if dependency.call]

        async def handle(request: Request) -> Response:
            for check in checks:
                await check(request)
            return cast(Response, await self.endpoint(request))

        return handle


def speech_routes(service: Service) -> APIRouter:
    router = APIRouter(dependencies=[allowed(service, "speak")], route_class=DirectRoute)
    shared = service.settings.shared_cache_seconds
    keeping = (
        f"public, max-age={shared}" if shared else f"private, max-age={service.settings.cache_ttl_seconds}"
    )

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses=audio(
            "Audio; JSON with `timestamps`, events with `stream_format` `sse`.",
            EVENTS,
            model=SpeechWithTimestamps,
        )
        | errors(400, 401, 403, 404, 413, 415, 429, 500, 503),
        openapi_extra=body(SpeechRequest, service.settings.max_input_chars) | {"parameters": [DEADLINE]},
    )
    async def speech(request: Request) -> Response:
        begin = time.perf_counter()
        content = await read_body(request, service.settings.max_body_bytes)
        asked = parse(content, request.headers.get("content-type", ""), SpeechRequest)
        request.state.record.text = asked.input
        if asked.timestamps and asked.stream_format != "sse" and asked.streamed:
            raise ApiError(
                400,
                "unsupported_parameter",
                f"'timestamps' is {asked.timestamps!r}, for which a stream of audio has no place; "
                "allowed: with 'stream_format' 'sse', or without a stream.",
                "timestamps",
            )
        order = to_order(asked, service.settings, service.engine)
        claim = service.claim(request.state.subject, request.headers, listening=asked.streamed)
        return await answer(request, asked, order, claim, begin)

    @router.get(
        "/v1/audio/speech",
        response_class=Response,
        responses=audio("A whole file, as POST gives it.")
        | NOT_MODIFIED
        | errors(400, 401, 403, 404, 429, 500, 503),
        openapi_extra=query(FileRequest, service.settings.max_input_chars),
    )
    async def file(request: Request) -> Response:
        """For browsers and caches in front: what is asked for stands in the address, and has an ETag."""
        begin = time.perf_counter()
        asked = from_query(request.query_params.multi_items())
        request.state.record.text = asked.input
        order = to_order(asked, service.settings, service.engine)
        claim = service.claim(request.state.subject, request.headers, listening=False)
        key = service.studio.key(order, claim)
        kept = {"ETag": f'"{key.rpartition(":")[2]}"', "Cache-Control": keeping}
        if kept["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=kept)
        whole = await answer(request, SpeechRequest(**asked.model_dump()), order, claim, begin)
        whole.headers.update(kept)
        return whole

    async def answer(
        request: Request, asked: SpeechRequest, order: Order, claim: Claim, begin: float
    ) -> Response:
        record = request.state.record
        studio, engine = service.studio, service.engine
        record.engine, record.order = engine.name, order
        charge = record.charge = await service.budgets.charge(
            request.state.subject, len(order.text), order.seconds
        )
        listener = record.listener = studio.listen(order, claim)
        spoken = listener.speech
        try:
            # The headers wait for the first sound, so that whatever fails before it is a real HTTP error.
            if spoken.complete is None:  # a hit out of memory is there at once
                await _unless_gone(request, spoken.begun())
            ttfa = record.ttfa = time.perf_counter() - begin
            service.metrics.ttfa.labels(listener.cache).observe(ttfa, tracing.exemplar())
            headers = {
                "X-Engine": engine.name,
                "X-Voice": order.voice.id,
                "X-Cache": listener.cache,
                "X-Sample-Rate": str(order.file_rate),
            } | (charge.headers if charge else {})
            request.state.log |= {"voice": order.voice.id, "format": order.format, "cache": listener.cache}
            request.state.log |= {"chars": len(order.text), "ttfa_seconds": round(ttfa, 4)}
            if asked.stream_format == "sse":
                headers["Cache-Control"] = "no-store"
                pieces = measured(spoken.follow(), spoken, service.metrics)
                events = _left_after(_events(spoken, pieces, bool(asked.timestamps)), studio, listener)
                return StreamingResponse(events, headers=headers, media_type="text/event-stream")
            media_type = MEDIA_TYPES[order.format]
            if asked.streamed:
                audible = measured(spoken.stream(), spoken, service.metrics)
                stream = _left_after(audible, studio, listener)
                return StreamingResponse(stream, headers=headers, media_type=media_type)
            if spoken.complete is None:
                await _unless_gone(request, spoken.whole())
            complete = await spoken.whole()
            headers["X-Audio-Duration-Seconds"] = f"{spoken.seconds:.3f}"
            headers["X-TTFA-Seconds"] = f"{ttfa:.4f}"
            headers["X-RTF"] = f"{spoken.busy_seconds / spoken.seconds:.4f}"
        except BaseException:
            studio.leave(listener)
            raise
        studio.leave(listener)
        if asked.timestamps:
            return JSONResponse(_with_timings(spoken, complete), headers=headers)
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


async def _left_after(stream: AsyncIterator[T], studio: Studio, listener: Listener) -> AsyncIterator[T]:
    """The stream; the speech is left when it is over or nobody listens any more."""
    try:
        async for item in stream:
            yield item
    finally:
        studio.leave(listener)


async def _events(
    spoken: Speech, pieces: AsyncIterator[bytes | Timing], timestamps: bool
) -> AsyncIterator[str]:
    """OpenAI's events `speech.audio.delta` and `speech.audio.done`; ours, `speech.audio.segment`, on demand.

    A failure midway is an event of the type `error`, in the shape that OpenAI's clients raise as APIError.
    Source: https://platform.openai.com/docs/api-reference/audio/speech-audio-delta-event
    """
    try:
        async for piece in pieces:
            if isinstance(piece, bytes):
                for start in range(0, len(piece), DELTA_BYTES):
                    encoded = base64.b64encode(piece[start : start + DELTA_BYTES]).decode()
                    yield _event("speech.audio.delta", audio=encoded)
            elif timestamps:
                yield _event("speech.audio.segment", **piece.told(spoken.order.voice.sample_rate))
        rtf = spoken.busy_seconds / spoken.seconds
        yield _event(
            "speech.audio.done",
            usage=usage(spoken),
            audio_seconds=round(spoken.seconds, 6),
            rtf=round(rtf, 4),
        )
    except ApiError as error:
        yield _event("error", **error.body())


def _event(type: str, **fields: Any) -> str:
    return f"data: {json.dumps({'type': type, **fields})}\n\n"


def usage(spoken: Speech) -> dict[str, int]:
    heard, said = len(spoken.order.text), math.ceil(spoken.seconds * TOKENS_PER_SECOND)
    return {"input_tokens": heard, "output_tokens": said, "total_tokens": heard + said}


def _with_timings(spoken: Speech, complete: bytes) -> dict[str, Any]:
    return {
        "audio": base64.b64encode(complete).decode(),
        "response_format": spoken.order.format,
        "sample_rate": spoken.order.file_rate,
        "audio_seconds": round(spoken.seconds, 6),
        "segments": [timing.told(spoken.order.voice.sample_rate) for timing in spoken.timings],
        "usage": usage(spoken),
    }
