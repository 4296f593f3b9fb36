"""Text in, audio out, while both are still being made: WebSocket /v1/audio/speech/ws.

The client sends JSON: first how to speak, then {"type": "text", "text": ...} as often as it likes,
{"type": "flush"} to have an unfinished sentence spoken, {"type": "end"} at the end. The server sends the
audio as binary messages, in all one file of the format asked for, and JSON: `started`, a `segment` before the
audio of each sentence, `flushed`, `done`, `error`.
"""

import asyncio
import json
import logging
import time
import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from maya1_tts import tracing
from maya1_tts.api.service import Service
from maya1_tts.audio import Encoder, Format, encoder
from maya1_tts.audit import Record
from maya1_tts.auth import Subject
from maya1_tts.certificates import HEADER
from maya1_tts.errors import ApiError
from maya1_tts.playout import measured
from maya1_tts.request import Options, check_text, template, understand
from maya1_tts.sentences import Sentences
from maya1_tts.studio import Order

ROUTE = "/v1/audio/speech/ws"
PROTOCOL = "bearer"  # browsers cannot set headers on a WebSocket: they offer this and then the token
SENTENCES_AHEAD = 8  # may wait to be spoken; then the client is not read from until one has been sent
PAUSE_SECONDS = 0.15  # between sentences; an engine puts none behind the last of a text
# Close codes of RFC 6455 section 7.4.1 and of the IANA registry.
DONE, UNSUPPORTED, POLICY, FAILED, RESTART, TRY_LATER = 1000, 1003, 1008, 1011, 1012, 1013
access_log = logging.getLogger("maya1_tts.access")


class Start(Options):
    """The first message. `response_format` is `pcm` unless said otherwise."""

    type: Literal["start"] = "start"
    response_format: Format = "pcm"


class Message(BaseModel):
    """Any later message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "flush", "end"]
    text: Annotated[str, Field(description="Only with type 'text'.")] = ""


class Closed(Exception):
    """The session ends, with this code, and with an `error` unless all went well."""

    def __init__(self, code: int, error: ApiError | None = None) -> None:
        super().__init__(code)
        self.code, self.error = code, error


def websocket_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket(ROUTE)
    async def speak(websocket: WebSocket) -> None:
        begin = time.perf_counter()
        offered = websocket.scope["subprotocols"]
        header = websocket.headers.get("authorization")
        by_protocol = len(offered) == 2 and offered[0] == PROTOCOL
        try:
            bearer = f"Bearer {offered[1]}" if by_protocol and header is None else header
            subject = service.subject(bearer, "speak", certificate=websocket.headers.get(HEADER))
            session = Session(service, websocket, subject)
        except ApiError as error:
            await websocket.send_denial_response(JSONResponse(error.body(), error.status, error.headers))
            _log(service, begin, error.status, code=error.code)
            return
        await websocket.accept(subprotocol=PROTOCOL if by_protocol else None)
        with service.speaking():
            code = await session.run()
        told = {"chars": session.characters, "audio_seconds": round(session.seconds, 3)}
        _log(service, begin, code, request_id=session.request_id, **told)

    return router


def _log(service: Service, begin: float, status: int, **fields: Any) -> None:
    service.metrics.requests.labels(ROUTE, "WEBSOCKET", str(status)).inc()
    fields |= {"method": "WEBSOCKET", "route": ROUTE, "status": status}
    access_log.info("request", extra={"fields": fields | {"seconds": round(time.perf_counter() - begin, 4)}})


class Session:
    """One connection. One task reads and cuts sentences, another speaks them; a bounded queue is between."""

    def __init__(self, service: Service, websocket: WebSocket, subject: Subject) -> None:
        """Raises ApiError 503 when the service is not ready or about to stop."""
        self._service, self._websocket, self._subject = service, websocket, subject
        self._studio, self._engine = service.studio, service.engine
        # A sentence; None where the client wants to know that all before it has been spoken; the end.
        self._queue: asyncio.Queue[str | Closed | None] = asyncio.Queue(SENTENCES_AHEAD)
        self._speaking = False
        self._samples = 0  # at the voice's rate
        self._rate = 1
        self._client = websocket.client.host if websocket.client else None
        self.request_id = uuid.uuid4().hex
        self.characters = 0

    @property
    def seconds(self) -> float:
        return self._samples / self._rate

    async def run(self) -> int:
        """Until the connection is closed. The code with which it was."""
        try:
            await self._converse()
            ended = Closed(DONE)
        except Closed as closed:
            ended = closed
        except WebSocketDisconnect as gone:
            return gone.code
        except Exception:
            access_log.exception("a WebSocket session failed")
            ended = Closed(FAILED, ApiError(500, "internal_error", "The service failed; it has logged why."))
        try:
            if ended.error:
                await self._tell("error", **ended.error.body())
            await self._websocket.close(ended.code, ended.error.code if ended.error else None)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client was faster
        return ended.code

    async def _converse(self) -> None:
        order = await self._started()
        file = encoder(order.format, order.voice.sample_rate, order.file_rate, endless=True)
        tasks = {asyncio.create_task(self._listen()), asyncio.create_task(self._speak(order, file))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _started(self) -> Order:
        text = await self._receive()
        if text is None:
            raise _restart()
        try:
            start = understand(text.encode("utf-8", "surrogatepass"), Start)
            order = template(start, self._service.settings, self._engine)
        except ApiError as error:
            raise Closed(POLICY, error) from None
        self._rate = order.voice.sample_rate
        await self._tell(
            "started",
            request_id=self.request_id,
            engine=self._engine.name,
            voice=order.voice.id,
            response_format=order.format,
            sample_rate=order.file_rate,
        )
        return order

    async def _listen(self) -> None:
        """Puts sentences into the queue, and the end behind them."""
        sentences = Sentences()
        while True:
            text = await self._receive()
            if text is None:
                await self._put(sentences.flush())
                await self._queue.put(_restart())
                return
            message = self._understand(text)
            self.characters += len(message.text)
            await self._put(sentences.feed(message.text))
            if message.type == "text":
                continue
            await self._put(sentences.flush())
            await self._queue.put(None if message.type == "flush" else Closed(DONE))
            if message.type == "end":
                return

    async def _receive(self) -> str | None:
        """The next message, or None when the service is about to stop.

        Raises Closed for what is no text, or when for too long nothing came and nothing was to be spoken.
        """
        received = asyncio.create_task(self._websocket.receive())
        leaving = asyncio.create_task(self._service.leaving.wait())
        idle_seconds = self._service.settings.websocket_idle_seconds
        try:
            while True:
                await asyncio.wait(
                    {received, leaving}, timeout=idle_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if received.done() or leaving.done():
                    break
                if not self._speaking and self._queue.empty():
                    silence = ApiError(408, "idle_timeout", f"No message came for {idle_seconds:g} s.")
                    raise Closed(POLICY, silence)
            if not received.done():
                return None
            came = received.result()
        finally:
            received.cancel()
            leaving.cancel()
        if came["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(came.get("code", 1005))
        if came.get("text") is None:
            raise Closed(
                UNSUPPORTED, ApiError(400, "invalid_json", "A binary message came; allowed: JSON as text.")
            )
        return str(came["text"])

    def _understand(self, text: str) -> Message:
        try:
            return understand(text.encode("utf-8", "surrogatepass"), Message)
        except ApiError as error:
            raise Closed(POLICY, error) from None

    async def _put(self, sentences: list[str]) -> None:
        for sentence in sentences:
            await self._queue.put(sentence)

    async def _speak(self, order: Order, file: Encoder) -> None:
        while True:
            item = await self._queue.get()
            if isinstance(item, Closed):
                await self._send(await asyncio.to_thread(file.finish))
                if item.error:
                    raise item
                await self._tell("done", audio_seconds=round(self.seconds, 6), characters=self.characters)
                return
            if item is None:
                await self._tell("flushed", end=round(self.seconds, 6))
                continue
            self._speaking = True
            try:
                await self._say(item, order, file)
            finally:
                self._speaking = False

    async def _say(self, sentence: str, order: Order, file: Encoder) -> None:
        client = self._websocket.client
        record = Record(
            self.request_id,
            ROUTE,
            client.host if client else None,
            self._subject,
            sentence,
            self._engine.name,
        )
        try:
            with tracing.entry(ROUTE, self._websocket.headers):
                await self._synthesise(replace(order, text=sentence), file, record)
        except ApiError as error:
            self._service.conclude(
                record, "failed" if error.status == 500 else "refused", error.status, error.code
            )
            if error.code == "empty_input":
                return  # a smiley, a line of dashes: nothing was lost
            if error.status != 400:
                raise Closed(TRY_LATER if error.status in (429, 503) else FAILED, error) from None
            await self._tell("error", **error.body())  # one sentence is wrong; the others are not
        except BaseException:
            self._service.conclude(record, "cancelled", 499)
            raise
        else:
            self._service.conclude(record, "done", 200)

    async def _synthesise(self, order: Order, file: Encoder, record: Record) -> None:
        check_text(order.text, self._service.settings.max_input_chars)
        record.order = order
        record.charge = await self._service.budgets.charge(self._subject, len(order.text), order.seconds)
        # Behind the first sentence, the listener still hears an earlier one.
        claim = self._service.claim(self._subject, self._websocket.headers, listening=not self._samples)
        listener = record.listener = self._studio.listen(
            replace(order, format="pcm", sample_rate=None), claim
        )
        try:
            async for piece in measured(listener.speech.stream(), listener.speech, self._service.metrics):
                if record.ttfa is None:
                    record.ttfa = time.perf_counter() - record.begun
                    self._service.metrics.ttfa.labels(listener.cache).observe(record.ttfa, tracing.exemplar())
                    if self._samples:
                        await self._write(np.zeros(round(PAUSE_SECONDS * self._rate), dtype=np.int16), file)
                    await self._tell(
                        "segment", text=order.text, start=round(self.seconds, 6), sample=self._samples
                    )
                await self._write(np.frombuffer(piece, dtype="<i2"), file)
        finally:
            self._studio.leave(listener)

    async def _write(self, samples: Any, file: Encoder) -> None:
        self._samples += len(samples)
        await self._send(await asyncio.to_thread(file.write, samples))

    async def _send(self, audio: bytes) -> None:
        if audio:
            await self._websocket.send_bytes(audio)

    async def _tell(self, type: str, **fields: Any) -> None:
        await self._websocket.send_text(json.dumps({"type": type, **fields}))


def _restart() -> Closed:
    return Closed(RESTART, ApiError(503, "draining", "This server is about to stop."))
