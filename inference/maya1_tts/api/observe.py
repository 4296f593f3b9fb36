"""Every request gets an id, a log line and its metrics."""

import contextlib
import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maya1_tts.api.service import Service

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
access_log = logging.getLogger("maya1_tts.access")


class Observe:
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
        speaking = self._service.speaking if scope["path"] == "/v1/audio/speech" else contextlib.nullcontext

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            with speaking():
                await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._service.metrics.requests.labels(route, method, str(status)).inc()
            self._service.metrics.request_duration.labels(route).observe(seconds)
            level = logging.DEBUG if route in ("/livez", "/readyz", "/metrics") else logging.INFO
            fields |= {"request_id": request_id, "method": method, "route": route, "status": status}
            access_log.log(level, "request", extra={"fields": fields | {"seconds": round(seconds, 4)}})
