"""The gRPC interface, by real clients: what is said, refused, cancelled, drained and encrypted."""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import AUDIENCE, INFERENCE, ISSUER, TEXT, Service, free_port, token, wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gate import Gate, Running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from maya1_tts.api import Service as InProcess
from maya1_tts.config import load_settings
from maya1_tts.errors import ConfigError
from maya1_tts.grpc import GrpcServer, speech_pb2, speech_pb2_grpc
from test_audio import by_ffmpeg
from test_config import run

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
LONG = "The sun came up. The birds began to sing, and the cat went home. It was a quiet day in the town."


class Client:
    def __init__(self, port: int, credentials: Any = None, bearer: str | None = None) -> None:
        self.port = port
        address = f"localhost:{port}"
        self.channel = (
            grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        )
        self.metadata = (("authorization", f"Bearer {bearer}"),) if bearer else ()
        self.stub = speech_pb2_grpc.SpeechStub(self.channel)

    def speak(self, text: str | None = TEXT, **fields: Any) -> Any:
        request = speech_pb2.SynthesizeRequest(**{"model": "tts-1", "response_format": "pcm"} | fields)
        if text is not None:
            request.input = text
        return self.stub.Synthesize(request, metadata=self.metadata, timeout=60)

    def refusal(self, text: str | None = TEXT, **fields: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.speak(text, **fields))
        return caught.value

    def health(self, name: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status)


def trailing(error: grpc.RpcError) -> dict[str, str]:
    return dict(error.trailing_metadata())


def audio(replies: list[Any]) -> bytes:
    return b"".join(reply.audio for reply in replies)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, secret_file: Path) -> Iterator[tuple[Service, Client]]:
    """In production mode: without TLS that is allowed on loopback."""
    port = free_port()
    service = Service(
        tmp_path_factory.mktemp("grpc"),
        JWT_SECRET_FILE=secret_file,
        JWT_ISSUER=ISSUER,
        JWT_AUDIENCE=AUDIENCE,
        GRPC_PORT=port,
    )
    try:
        service.wait_until_ready()
        yield service, Client(port, bearer=token())
    finally:
        service.stop()


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, "maya1_tts/grpc/speech.proto"]
    subprocess.run(command, cwd=INFERENCE, check=True)
    made = sorted((tmp_path / "maya1_tts" / "grpc").iterdir())
    assert len(made) == 3
    for file in made:
        assert file.read_text() == (INFERENCE / "maya1_tts" / "grpc" / file.name).read_text(), (
            "run: make proto"
        )


def test_speech_is_that_of_http(served: tuple[Service, Client]) -> None:
    service, client = served
    expected = service.speak(LONG).content
    header, *parts, trailer = client.speak(LONG)
    assert (header.header.engine, header.header.voice) == ("onnx_voice", "joe")
    assert (header.header.sample_rate, header.header.cache) == (22050, "bypass")
    assert audio(parts) == expected
    assert all(part.WhichOneof("part") == "audio" and len(part.audio) <= 65536 for part in parts)
    assert trailer.trailer.samples == len(expected) // 2
    assert trailer.trailer.seconds == pytest.approx(len(expected) / 2 / 22050)
    assert trailer.trailer.ttfa > 0
    assert trailer.trailer.rtf > 0
    flac = audio(list(client.speak(LONG, response_format="flac")))
    assert by_ffmpeg(flac, "flac").tobytes() == expected
    resampled = list(client.speak(LONG, sample_rate=8000))
    assert resampled[0].header.sample_rate == 8000
    assert len(audio(resampled)) / len(expected) == pytest.approx(8000 / 22050, rel=0.001)
    fast = audio(list(client.speak(LONG, speed=2.0)))
    assert len(fast) * 2 == pytest.approx(len(expected), rel=0.1)


def test_calls_are_counted_and_logged_without_text_and_token(served: tuple[Service, Client]) -> None:
    service, client = served
    route = "/maya1.tts.v1.Speech/Synthesize"
    before = service.metric("requests_total", route=route, method="gRPC", status="OK")
    request = speech_pb2.SynthesizeRequest(model="tts-1", input="Walnuts are brown.")
    call = client.stub.Synthesize(request, metadata=(*client.metadata, ("x-request-id", "abc-7")), timeout=60)
    list(call)
    assert ("x-request-id", "abc-7") in list(call.initial_metadata())
    wait_for(
        lambda: service.metric("requests_total", route=route, method="gRPC", status="OK") == before + 1,
        "the call is counted",
    )
    lines = [json.loads(line) for line in service.log.splitlines() if "abc-7" in line]
    told = {line["logger"]: line for line in lines}
    assert told["maya1_tts.access"].items() >= {"route": route, "status": "OK", "voice": "joe"}.items()
    audit = told["maya1_tts.audit"]
    assert audit.items() >= {"route": route, "outcome": "done", "subject": "tests", "chars": 18}.items()
    assert audit["client"] in ("127.0.0.1", "::1")
    assert audit["ttfa_seconds"] > 0
    assert "Walnuts" not in service.log
    assert client.metadata[0][1].removeprefix("Bearer ") not in service.log


def test_voices(served: tuple[Service, Client]) -> None:
    _, client = served
    reply = client.stub.ListVoices(speech_pb2.ListVoicesRequest(), metadata=client.metadata, timeout=60)
    voice = speech_pb2.Voice(id="joe", name="joe", language="en-US", sample_rate=22050, engine="onnx_voice")
    assert list(reply.voices) == [voice]
    with pytest.raises(grpc.RpcError) as caught:
        client.stub.ListVoices(speech_pb2.ListVoicesRequest(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


INVALID = grpc.StatusCode.INVALID_ARGUMENT
REFUSED: list[tuple[str | None, dict[str, Any], grpc.StatusCode, str, str]] = [
    (None, {}, INVALID, "missing_parameter", "input"),
    ("", {}, INVALID, "empty_input", "input"),
    ("a" * 4097, {}, INVALID, "input_too_long", "input"),
    ("a\x00b", {}, INVALID, "invalid_characters", "input"),
    (TEXT, {"speed": 9.0}, INVALID, "invalid_value", "speed"),
    (TEXT, {"speed": float("nan")}, INVALID, "invalid_value", "speed"),
    (TEXT, {"response_format": "aac"}, INVALID, "unsupported_format", "response_format"),
    (TEXT, {"instructions": "Whisper."}, INVALID, "unsupported_parameter", "instructions"),
    (TEXT, {"voice": "alloy"}, grpc.StatusCode.NOT_FOUND, "voice_not_found", "voice"),
    (TEXT, {"model": "maya2"}, grpc.StatusCode.NOT_FOUND, "model_not_found", "model"),
]


@pytest.mark.parametrize(
    ("text", "fields", "status", "code", "param"), REFUSED, ids=lambda value: str(value)[:30]
)
def test_refusals_are_those_of_http(
    served: tuple[Service, Client],
    text: str | None,
    fields: dict[str, Any],
    status: Any,
    code: str,
    param: str,
) -> None:
    error = served[1].refusal(text, **fields)
    assert error.code() is status
    assert {"error-code": code, "error-param": param}.items() <= trailing(error).items()
    assert f"'{param}'" in error.details()


def test_a_message_beyond_the_limit_is_refused(served: tuple[Service, Client]) -> None:
    assert served[1].refusal("a" * 70_000).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("bearer", "status", "code"),
    [
        (None, "UNAUTHENTICATED", "missing_token"),
        (token(exp=1), "UNAUTHENTICATED", "token_expired"),
        (token(scope=""), "PERMISSION_DENIED", "insufficient_scope"),
    ],
)
def test_tokens_are_those_of_http(
    served: tuple[Service, Client], bearer: str | None, status: str, code: str
) -> None:
    service, client = served
    other = Client(client.port, bearer=bearer)
    before = service.metric("auth_failures_total", code=code)
    error = other.refusal()
    assert (error.code().name, trailing(error)["error-code"]) == (status, code)
    assert service.metric("auth_failures_total", code=code) == before + 1


@pytest.fixture
def loading() -> Iterator[tuple[Running, Client]]:
    port = free_port()
    running = Running(grpc_port=port)
    yield running, Client(port)
    running.stop()


@pytest.fixture
def ready(loading: tuple[Running, Client]) -> tuple[Running, Client]:
    running, client = loading
    running.may_load.set()
    running.engine.permits.release(3)  # "Ready to speak."
    wait_for(lambda: client.health() == SERVING, "health says so")
    return loading


def test_health_follows_readiness(loading: tuple[Running, Client]) -> None:
    running, client = loading
    assert client.health() == NOT_SERVING
    error = client.refusal("one", model="gate")
    assert (error.code().name, trailing(error)["error-code"]) == ("UNAVAILABLE", "not_ready")
    assert trailing(error)["retry-after"] == "1"
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == NOT_SERVING
    running.may_load.set()
    running.engine.permits.release(3)
    assert next(watch).status == SERVING
    assert client.health("maya1.tts.v1.Speech") == SERVING
    watch.cancel()


def test_the_first_sound_leaves_before_the_last_is_made(ready: tuple[Running, Client]) -> None:
    running, client = ready
    running.engine.permits.release(1)
    replies = client.speak("one two", model="gate")
    assert next(replies).header.voice == "tone"
    assert len(next(replies).audio) == 1600
    assert running.engine.spoken[3:] == ["one"]
    running.engine.permits.release(1)
    *_, trailer = replies
    assert trailer.trailer.samples == 1600


def test_a_client_that_cancels_stops_its_synthesis(ready: tuple[Running, Client]) -> None:
    running, client = ready
    running.engine.permits.release(1)
    replies = client.speak("a b c", model="gate")
    next(replies)
    replies.cancel()
    wait_for(lambda: running.outcomes("cancelled") == 1, "the streamed one is cancelled")
    waiting = client.speak("d e f", model="gate")
    wait_for(lambda: running.metric("active_syntheses") == 1, "the other is under way")
    waiting.cancel()
    wait_for(lambda: running.outcomes("cancelled") == 2, "it is cancelled too")
    assert running.engine.spoken[3:] == ["a"]
    wait_for(lambda: running.service.in_flight == 0, "nothing is counted any more")


def test_a_failing_synthesis_is_an_internal_error_and_harms_no_other(ready: tuple[Running, Client]) -> None:
    running, client = ready
    running.engine.permits.release(3)
    error = client.refusal("explode", model="gate")
    assert (error.code().name, trailing(error)["error-code"]) == ("INTERNAL", "synthesis_failed")
    replies = client.speak("one explode", model="gate")
    assert next(replies).header.voice == "tone"
    assert len(next(replies).audio) == 1600
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert trailing(caught.value)["error-code"] == "synthesis_failed"
    running.engine.permits.release(1)
    assert list(client.speak("one", model="gate"))[-1].trailer.samples == 800


def test_a_drain_refuses_new_calls_and_waits_for_old_ones(ready: tuple[Running, Client]) -> None:
    running, client = ready
    running.engine.permits.release(1)
    replies = client.speak("one two", model="gate")
    next(replies)
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    running.drain()
    assert next(watch).status == NOT_SERVING
    error = client.refusal("three", model="gate")
    assert (error.code().name, trailing(error)["error-code"]) == ("UNAVAILABLE", "draining")
    running.engine.permits.release(1)
    assert list(replies)[-1].trailer.samples == 1600
    wait_for(lambda: running.server.should_exit, "the drain is over")


# TLS


def signed(name: str, key: Any, issuer: str, issuer_key: Any) -> bytes:
    """A certificate for localhost, PEM."""
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)]) for common in (name, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(key: Any) -> bytes:
    encoding, format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(encoding, format, serialization.NoEncryption()))


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = signed("authority", self._key, "authority", self._key)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Private key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        return pem(key), signed(name, key, "authority", self._key)


def test_tls_with_client_certificates_and_renewal(tmp_path: Path) -> None:
    authority, clients = Authority(), Authority()
    files = {name: tmp_path / name for name in ("key", "certificate", "clients")}
    key, certificate = authority.issue("first")
    files["key"].write_bytes(key)
    files["certificate"].write_bytes(certificate)
    files["clients"].write_bytes(clients.certificate)
    port = free_port()
    running = Running(
        grpc_port=port,
        grpc_tls_cert_file=files["certificate"],
        grpc_tls_key_file=files["key"],
        grpc_client_ca_file=files["clients"],
    )
    own_key, own = clients.issue("client")

    def health(root: bytes, key: bytes | None = own_key, certificate: bytes | None = own) -> int | str:
        client = Client(port, grpc.ssl_channel_credentials(root, key, certificate))
        try:
            return client.health()
        except grpc.RpcError as error:
            return str(error.code().name)
        finally:
            client.channel.close()

    try:
        assert health(authority.certificate) == NOT_SERVING
        assert health(clients.certificate) == "UNAVAILABLE", "the client does not trust the server"
        assert health(authority.certificate, None, None) == "UNAVAILABLE", "no client certificate"
        assert health(authority.certificate, *authority.issue("client")) == "UNAVAILABLE", (
            "of another authority"
        )
        renewed = Authority()
        key, certificate = renewed.issue("second")
        files["key"].write_bytes(key)
        assert health(authority.certificate) == NOT_SERVING, (
            "key and certificate do not fit: the old ones stay"
        )
        files["certificate"].write_bytes(certificate)
        assert health(renewed.certificate) == NOT_SERVING
        assert health(authority.certificate) == "UNAVAILABLE"
    finally:
        running.stop()


def test_bad_settings(tmp_path: Path, secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = Authority().issue("localhost")
    other_key, _ = Authority().issue("localhost")
    for name, content in {"key": key, "other": other_key, "cert": certificate}.items():
        (tmp_path / name).write_bytes(content)
    cert = tmp_path / "cert"
    cases: list[tuple[dict[str, object], str]] = [
        ({"HOST": "0.0.0.0"}, "without TLS is refused"),
        ({"GRPC_TLS_CERT_FILE": cert}, "only one is set"),
        ({"GRPC_CLIENT_CA_FILE": cert}, "needs MAYA1_TTS_GRPC_TLS_CERT_FILE"),
        ({"GRPC_TLS_CERT_FILE": cert, "GRPC_TLS_KEY_FILE": tmp_path / "other"}, "are no pair"),
        ({"GRPC_TLS_CERT_FILE": cert, "GRPC_TLS_KEY_FILE": "/nonexistent"}, "cannot be read"),
    ]
    for changes, message in cases:
        settings = {"JWT_SECRET_FILE": secret_file, "HOST": "127.0.0.1", "GRPC_PORT": free_port()} | changes
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(f"MAYA1_TTS_{name}", str(value))
            with pytest.raises(ConfigError, match=message):
                GrpcServer(InProcess(load_settings(), lambda settings, metrics: Gate()))


def test_a_port_that_is_taken(secret_file: Path) -> None:
    port = free_port()
    result = run("serve", JWT_SECRET_FILE=secret_file, HOST="127.0.0.1", PORT=port, GRPC_PORT=port)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert f"MAYA1_TTS_GRPC_PORT='{port}' cannot be listened on" in result.stderr
