"""Every request gets an id, a log line and its metrics."""

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maya1_tts import tracing
from maya1_tts.api.service import Service
from maya1_tts.audit import Outcome, Record

QUIET = ("/livez", "/readyz", "/metrics")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
access_log = logging.getLogger("maya1_tts.access")


def request_id(given: str) -> str:
    """The id that the client gave its request, if it is a harmless one, else a new one."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex


def answered(
    service: Service, begin: float, fields: Mapping[str, object], route: str, method: str, status: int | str
) -> None:
    """One request that is over, in the metrics and the log. begin: by time.perf_counter."""
    seconds = time.perf_counter() - begin
    service.metrics.requests.labels(route, method, str(status)).inc()
    service.metrics.request_duration.labels(route).observe(seconds)
    if id := tracing.trace_id():
        fields = {**fields, "trace_id": id}
    level = logging.DEBUG if route in QUIET else logging.INFO
    told = {**fields, "method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
    access_log.log(level, "request", extra={"fields": told})


class Observe:
    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/v1/"):
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            with tracing.entry(scope["path"], headers) as span:
                await self._observed(scope, receive, send, span)
        else:
            await self._observed(scope, receive, send, {})

    async def _observed(self, scope: Scope, receive: Receive, send: Send, span: dict[str, Any]) -> None:
        id = request_id(dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"))
        fields: dict[str, object] = {"request_id": id}
        record = Record(id, scope["path"], client=scope["client"][0] if scope["client"] else None)
        state = scope.setdefault("state", {})
        state |= {"log": fields, "record": record}
        status = 499  # stands when the client leaves before an answer
        complete = broken = False
        speaks = scope["path"] == "/v1/audio/speech"
        speaking = self._service.speaking if speaks else contextlib.nullcontext

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        try:
            with speaking():
                await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            raise
        except Exception:
            broken = True
            status = 500 if status == 499 else status  # so answers who is outside of this
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            span |= {"name": f"{method} {route}", "http.request.method": method, "http.route": route}
            span |= {"http.response.status_code": status}
            span |= {f"maya1.{name}": value for name, value in fields.items()}
            answered(self._service, record.begun, fields, route, method, status)
            if speaks and method in ("GET", "POST"):
                record.subject = state.get("subject")
                error = record.listener.speech.error if record.listener else None
                code = fields.get("code") or (error.code if error else None)
                outcome = _outcome(status, broken or error is not None, complete)
                self._service.conclude(record, outcome, status, str(code) if code else None)


def _outcome(status: int, broken: bool, complete: bool) -> Outcome:
    """What came of a request, of which the status alone does not tell: a stream has it before it ends."""
    if 400 <= status < 600 and status not in (499, 500):
        return "refused"
    if status == 500 or broken:
        return "failed"
    return "done" if complete and status != 499 else "cancelled"
