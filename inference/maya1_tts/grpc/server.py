"""Speech over gRPC: what speech.proto describes, and grpc.health.v1."""

import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from maya1_tts import tracing
from maya1_tts.api.observe import answered, request_id
from maya1_tts.api.service import Service
from maya1_tts.audit import Outcome, Record
from maya1_tts.config import PREFIX, Settings, read_secret
from maya1_tts.errors import ApiError, ConfigError, shown
from maya1_tts.grpc import speech_pb2, speech_pb2_grpc
from maya1_tts.playout import measured
from maya1_tts.request import SpeechRequest, to_order, validate

SPEECH = speech_pb2.DESCRIPTOR.services_by_name["Speech"].full_name
CHUNK_BYTES = 65536  # clients take 4 MiB a message unless told otherwise, and a cached answer may be longer
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
OUTCOME: dict[grpc.StatusCode, Outcome] = {
    grpc.StatusCode.OK: "done",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.INTERNAL: "failed",
}
log = logging.getLogger(__name__)


@dataclass
class Call:
    """One call under way. `fields` go to its line in the log, `record` to the audit log."""

    metadata: dict[str, str]
    record: Record
    fields: dict[str, object]
    status: grpc.StatusCode = grpc.StatusCode.CANCELLED  # stands when the client leaves before an answer
    code: str | None = None  # of the error, if there was one

    @classmethod
    def begin(cls, method: str, context: Any) -> "Call":
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        id = request_id(metadata.get("x-request-id", ""))
        # A peer is `ipv4:ADDRESS:PORT`, or `ipv6:` with the brackets of the address percent-encoded.
        client = unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")
        return cls(metadata, Record(id, f"/{SPEECH}/{method}", client), {"request_id": id})

    @property
    def token(self) -> str | None:
        return self.metadata.get("authorization")


class SpeechServicer:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def Synthesize(self, request: speech_pb2.SynthesizeRequest, context: Any) -> None:
        # It writes and does not yield: a cancelled call ends here at once, not when a generator is collected.
        with self._service.speaking():
            call = Call.begin("Synthesize", context)
            try:
                async with self._answer(call, context):
                    await self._speak(request, context, call)
            finally:
                outcome = OUTCOME.get(call.status, "refused")
                self._service.conclude(call.record, outcome, call.status.name, call.code)

    async def ListVoices(self, request: speech_pb2.ListVoicesRequest, context: Any) -> Any:
        call = Call.begin("ListVoices", context)
        async with self._answer(call, context):
            self._service.subject(call.token)
            engine = self._service.engine
            names = ("id", "name", "language", "sample_rate")
            voices = (
                speech_pb2.Voice(engine=engine.name, **{name: getattr(voice, name) for name in names})
                for voice in engine.voices.values()
            )
            return speech_pb2.ListVoicesReply(voices=voices)

    async def _speak(self, request: speech_pb2.SynthesizeRequest, context: Any, call: Call) -> None:
        service, record = self._service, call.record
        subject = record.subject = service.subject(call.token, "speak")
        record.text = request.input
        studio, engine = service.studio, service.engine
        given = {descriptor.name: value for descriptor, value in request.ListFields()}
        order = to_order(validate(given, SpeechRequest), service.settings, engine)
        call.fields |= {"voice": order.voice.id, "format": order.format, "chars": len(order.text)}
        claim = service.claim(subject, call.metadata, listening=True)
        if (left := context.time_remaining()) is not None:
            claim = replace(claim, deadline=min(claim.deadline, time.monotonic() + left))
        record.charge = await service.budgets.charge(subject, len(order.text), order.seconds)
        record.engine, record.order = engine.name, order
        listener = record.listener = studio.listen(order, claim)
        spoken = listener.speech
        try:
            async for piece in measured(spoken.stream(), spoken, service.metrics):
                if record.ttfa is None:
                    ttfa = record.ttfa = time.perf_counter() - record.begun
                    service.metrics.ttfa.labels(listener.cache).observe(ttfa, tracing.exemplar())
                    call.fields |= {"cache": listener.cache, "ttfa_seconds": round(ttfa, 4)}
                    header = speech_pb2.Header(
                        engine=engine.name, voice=order.voice.id,
                        sample_rate=order.file_rate, cache=listener.cache,
                    )  # fmt: skip
                    await context.write(speech_pb2.SynthesizeReply(header=header))
                for start in range(0, len(piece), CHUNK_BYTES):
                    await context.write(speech_pb2.SynthesizeReply(audio=piece[start : start + CHUNK_BYTES]))
            trailer = speech_pb2.Trailer(
                seconds=spoken.seconds, samples=spoken.samples, ttfa=record.ttfa or 0.0,
                rtf=spoken.busy_seconds / spoken.seconds,
            )  # fmt: skip
            await context.write(speech_pb2.SynthesizeReply(trailer=trailer))
        finally:
            studio.leave(listener)

    @contextlib.asynccontextmanager
    async def _answer(self, call: Call, context: Any) -> AsyncIterator[None]:
        """Turns a failure of the call into its status, and records it when it is over."""
        record = call.record
        with tracing.entry(record.route, call.metadata) as span:
            try:
                await context.send_initial_metadata((("x-request-id", record.request_id),))
                try:
                    yield
                    call.status = grpc.StatusCode.OK
                except ApiError as error:
                    await self._abort(call, context, error)
                except Exception:
                    log.exception("call failed")
                    told = ApiError(500, "internal_error", "The service failed; it has logged why.")
                    await self._abort(call, context, told)
            finally:
                span |= {"rpc.system": "grpc", "rpc.response.status_code": call.status.name}
                span |= {f"maya1.{name}": value for name, value in call.fields.items()}
                answered(self._service, record.begun, call.fields, record.route, "gRPC", call.status.name)

    async def _abort(self, call: Call, context: Any, error: ApiError) -> None:
        call.status, call.code = STATUS.get(error.status, grpc.StatusCode.INTERNAL), error.code
        call.fields["code"] = error.code
        trailing = [("error-code", error.code)]
        if error.param:
            trailing.append(("error-param", error.param))
        if "Retry-After" in error.headers:
            trailing.append(("retry-after", error.headers["Retry-After"]))
        await context.abort(call.status, error.message, tuple(trailing))


class GrpcServer:
    """Listens beside HTTP. Its health follows that of the service."""

    def __init__(self, service: Service) -> None:
        """Raises ConfigError when a certificate or key cannot be used."""
        self._service = service
        self._credentials = _credentials(service.settings)
        self._health = health.aio.HealthServicer()
        self._server: Any = None

    async def start(self) -> None:
        """Raises ConfigError when the port is taken."""
        settings = self._service.settings
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # else a second process would share the port in silence
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.keepalive_time_ms", 30_000),  # a client that vanished is found, and its speech stopped
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # more often is refused
                ("grpc.max_connection_idle_ms", 300_000),
            )
        )
        speech_pb2_grpc.add_SpeechServicer_to_server(SpeechServicer(self._service), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if self._credentials:
                self._server.add_secure_port(address, self._credentials)
            else:
                self._server.add_insecure_port(address)
        except RuntimeError:
            raise ConfigError(
                f"{PREFIX}GRPC_PORT='{settings.grpc_port}' cannot be listened on at {address}; "
                "allowed: a port that is free."
            ) from None
        await self.report_health()
        await self._server.start()
        log.info("gRPC listens", extra={"fields": {"address": address, "tls": self._credentials is not None}})

    async def report_health(self) -> None:
        """To be called when readiness has changed."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if self._service.ready else states.NOT_SERVING
        for name in ("", SPEECH):
            await self._health.set(name, state)

    async def stop(self) -> None:
        await self._server.stop(grace=1)  # draining has waited already


def _credentials(settings: Settings) -> Any:
    """None where there is no TLS. Each new connection gets the certificate that lies in the files then."""
    certificate, key = settings.grpc_tls_cert_file, settings.grpc_tls_key_file
    if certificate is None or key is None:
        return None
    authority = settings.grpc_client_ca_file
    clients = read_secret("GRPC_CLIENT_CA_FILE", authority) if authority else None
    current = _read_pair(certificate, key)

    def renewed() -> Any:
        nonlocal current
        try:
            latest = _read_pair(certificate, key)
        except ConfigError as error:
            log.error("kept the old certificate: %s", error)
            return None
        if latest == current:
            return None
        current = latest
        log.info("read the certificate again")
        return grpc.ssl_server_certificate_configuration([latest], clients)

    first = grpc.ssl_server_certificate_configuration([current], clients)
    return grpc.dynamic_ssl_server_credentials(
        first, renewed, require_client_authentication=clients is not None
    )


def _read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Private key and certificate chain, PEM. Raises ConfigError unless they belong together."""
    pair = read_secret("GRPC_TLS_KEY_FILE", key), read_secret("GRPC_TLS_CERT_FILE", certificate)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{PREFIX}GRPC_TLS_CERT_FILE={shown(str(certificate))} and "
            f"{PREFIX}GRPC_TLS_KEY_FILE={shown(str(key))} are no pair: {error.reason}."
        ) from None
    return pair
