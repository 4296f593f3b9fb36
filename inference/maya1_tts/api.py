"""The HTTP interface."""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Depends, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maya1_tts import __version__
from maya1_tts.audio import MEDIA_TYPES
from maya1_tts.auth import Authenticator
from maya1_tts.cache import Cache
from maya1_tts.config import Settings
from maya1_tts.engine import Engine
from maya1_tts.errors import ApiError, ConfigError, shown
from maya1_tts.metrics import Metrics
from maya1_tts.request import parse, read_body, to_order
from maya1_tts.studio import Speech, Studio

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
T = TypeVar("T")
log = logging.getLogger(__name__)
access_log = logging.getLogger("maya1_tts.access")


class ClientGone(Exception):
    """Nobody is left to answer."""


class Service:
    """Everything one process holds. It listens at once, and is ready once the engine has spoken."""

    def __init__(self, settings: Settings, load_engine: Callable[[Settings], Engine]) -> None:
        """Raises ConfigError when a key or password file cannot be used."""
        self.settings = settings
        self.metrics = Metrics()
        self.auth = Authenticator(settings) if settings.auth == "jwt" else None
        self.cache = Cache(settings, self.metrics)
        self.draining = False
        self.in_flight = 0  # requests for speech that are not fully answered
        self.on_fatal: Callable[[Exception], None] = lambda error: None
        self._load_engine = load_engine
        self._engine: Engine | None = None
        self._studio: Studio | None = None
        self.metrics.build.info({"version": __version__})
        self.metrics.queue_limit.set(settings.queue_limit)
        self.metrics.workers.set(settings.workers)
        self.metrics.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        return self._studio is not None and not self.draining

    @property
    def engine(self) -> Engine:
        if self._engine is None or self._studio is None:
            raise ApiError(503, "not_ready", "The engine is still loading.", headers={"Retry-After": "1"})
        return self._engine

    @property
    def studio(self) -> Studio:
        if self.draining:
            raise ApiError(503, "draining", "This server is about to stop.", headers={"Retry-After": "1"})
        if self._studio is None:
            raise ApiError(503, "not_ready", "The engine is still loading.", headers={"Retry-After": "1"})
        return self._studio

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with self.cache.running():
            start = asyncio.create_task(self._start())
            yield
            start.cancel()
            if self._engine:
                self._engine.close()

    async def _start(self) -> None:
        try:
            engine = self._engine = await asyncio.to_thread(self._load_engine, self.settings)
            if self.settings.default_voice not in engine.voices:
                raise ConfigError(
                    f"MAYA1_TTS_DEFAULT_VOICE={shown(self.settings.default_voice)} is unknown; "
                    f"allowed: {', '.join(engine.voices)}."
                )
            self.metrics.engine.info({"engine": engine.name, "voices": str(len(engine.voices))})
            voice = self.settings.default_voice
            for segment in engine.segments("Ready to speak.", voice, 1.0):
                async for _ in engine.stream(segment, voice, 1.0):
                    pass
            self._studio = Studio(self.settings, engine, self.cache, self.metrics)
            log.info("ready", extra={"fields": {"engine": engine.name, "voices": list(engine.voices)}})
        except Exception as error:
            self.on_fatal(error)


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="maya1-tts", version=__version__, lifespan=service.lifespan, openapi_url=None)

    def authenticated(request: Request) -> None:
        if service.auth:
            service.auth.check(request.headers.get("authorization"))

    protected: dict[str, Any] = {"dependencies": [Depends(authenticated)]}

    @app.post("/v1/audio/speech", **protected)
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

    @app.get("/v1/models", **protected)
    async def models() -> dict[str, Any]:
        names = [service.engine.name, *service.settings.aliases]
        return {"object": "list", "data": [_model(name) for name in names]}

    @app.get("/v1/models/{model}", **protected)
    async def model(model: str) -> dict[str, Any]:
        names = [service.engine.name, *service.settings.aliases]
        if model not in names:
            raise ApiError(
                404, "model_not_found", f"'model' is {shown(model)}; allowed: {', '.join(names)}.", "model"
            )
        return _model(model)

    @app.get("/v1/audio/voices", **protected)
    async def voices() -> dict[str, Any]:
        engine = service.engine
        fields = ("id", "name", "language", "sample_rate")
        return {
            "voices": [
                {field: getattr(voice, field) for field in fields} | {"engine": engine.name}
                for voice in engine.voices.values()
            ]
        }

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        status = "ready" if service.ready else "draining" if service.draining else "loading"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        if error.status == 401:
            service.metrics.auth_failures.labels(error.code).inc()
        request.state.log |= {"code": error.code}
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = shown(request.url.path)
        told = {
            404: ApiError(404, "not_found", f"There is no route {path}."),
            405: ApiError(405, "method_not_allowed", f"{request.method} is not allowed on {path}."),
        }.get(error.status_code) or ApiError(error.status_code, "http_error", str(error.detail))
        return JSONResponse(told.body(), told.status, error.headers)

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # for the log and the metrics; nobody reads it

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        told = ApiError(500, "internal_error", "The service failed; it has logged why.")
        return JSONResponse(told.body(), 500)

    app.add_middleware(Observe, service=service)
    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "maya1-tts"}


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


class Observe:
    """Gives every request an id, a log line and its metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        fields: dict[str, object] = {}
        scope.setdefault("state", {})["log"] = fields
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
        status = 499  # stands when the client leaves before an answer
        speaks = scope["path"] == "/v1/audio/speech"

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        self._service.in_flight += speaks
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._service.in_flight -= speaks
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._service.metrics.requests.labels(route, method, str(status)).inc()
            self._service.metrics.request_duration.labels(route).observe(seconds)
            level = logging.DEBUG if route in ("/livez", "/readyz", "/metrics") else logging.INFO
            fields |= {"request_id": request_id, "method": method, "route": route, "status": status}
            access_log.log(level, "request", extra={"fields": fields | {"seconds": round(seconds, 4)}})
