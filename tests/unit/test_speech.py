"""The client side of speech, against a stand-in for the service: a small HTTPS server with recorded answers.

Its certificate is real and so is the check of it. What the true service answers is tested elsewhere.
"""

import io
import json
import math
import ssl
import struct
import threading
import wave
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mayafleet import certs, speech, tokens
from mayafleet.errors import ExitCode, FleetError
from mayafleet.speech import Connection

RATE, SECONDS = 24000, 0.5
SAMPLES = b"\x01\x02" * int(RATE * SECONDS)
UNKNOWN = 0xFFFFFFFF
STREAMED_HEADER = (
    struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN, b"WAVE", b"fmt ", 16)
    + struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    + struct.pack("<4sI", b"data", UNKNOWN)
)
HEADERS = {
    "X-Engine": "recorded",
    "X-Voice": "joe",
    "X-Cache": "miss",
    "X-Sample-Rate": str(RATE),
    "X-Request-Id": "r-1",
}


class StandIn(ThreadingHTTPServer):
    """Answers each text in its own, recorded way, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, certificate: Path, clients: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if clients:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.asked: list[dict[str, Any]] = []
        self.authorization: str | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that turns away is what some tests are about."""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.server.authorization = self.headers["Authorization"]
        match asked["input"]:
            case "cut off":
                self.chunks([STREAMED_HEADER, SAMPLES[:1000]], finish=False)
            case "header only":
                self.chunks([STREAMED_HEADER])
            case "no token":
                self.refuse(401, "The token has expired.", "token_expired")
            case "no scope":
                self.refuse(403, "This needs the scope 'speak'.", "insufficient_scope")
            case "too many":
                self.refuse(429, "All 4 slots are taken.", "too_many_requests", {"Retry-After": "7"})
            case "no such voice":
                self.refuse(404, "'voice' is 'x'; allowed: joe.", "voice_not_found")
            case "broken":
                self.whole(500, "text/html", b"<html>Internal Server Error</html>")
            case "a page":
                self.whole(200, "text/html", b"<html>Welcome to nginx!</html>")
            case "not a wav":
                self.whole(200, "audio/wav", b"ID3" + bytes(100))
            case "elsewhere":
                self.whole(301, "text/html", b"", {"Location": "https://192.0.2.1/"})
            case _ if asked["stream"] and asked["response_format"] == "wav":
                self.chunks(
                    [STREAMED_HEADER, *(SAMPLES[at : at + 5000] for at in range(0, len(SAMPLES), 5000))]
                )
            case _ if asked["response_format"] == "wav":
                self.whole(
                    200, "audio/wav", recorded_wav(), HEADERS | {"X-Audio-Duration-Seconds": str(SECONDS)}
                )
            case _ if asked["response_format"] == "pcm":
                self.whole(200, "audio/pcm", SAMPLES, HEADERS)
            case _:
                told = {} if asked["stream"] else {"X-Audio-Duration-Seconds": "1.25"}
                self.whole(200, "audio/mpeg", b"recorded mp3", HEADERS | told)

    def whole(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
        self.whole(status, "application/json", json.dumps(error).encode(), headers)

    def chunks(self, pieces: list[bytes], finish: bool = True) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "audio/wav", "Transfer-Encoding": "chunked", **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in [*pieces, b""] if finish else pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.close_connection = not finish

    def log_message(self, format: str, *args: Any) -> None:
        pass


def recorded_wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(SAMPLES)
    return file.getvalue()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def service(certificate: Path) -> Iterator[StandIn]:
    server = StandIn(certificate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def connection(service: StandIn, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Connection(f"https://127.0.0.1:{service.server_port}", "token-of-the-operator", certificate)


def test_a_streamed_wav_becomes_a_proper_file(connection: Connection, tmp_path: Path) -> None:
    spoken = speech.say("hello", connection, tmp_path / "out.wav")
    with wave.open(str(spoken.path)) as file:
        assert file.getnframes() == RATE * SECONDS
        assert file.readframes(file.getnframes()) == SAMPLES
    size = spoken.path.stat().st_size
    assert struct.unpack_from("<I", spoken.path.read_bytes(), 4) == (size - 8,)
    assert spoken.duration == pytest.approx(SECONDS)
    assert 0 < spoken.ttfa <= spoken.elapsed
    assert spoken.rtf == pytest.approx(spoken.elapsed / SECONDS)
    assert (spoken.engine, spoken.voice, spoken.cache) == ("recorded", "joe", "miss")


def test_an_unstreamed_wav_is_left_as_it_is(connection: Connection, tmp_path: Path) -> None:
    spoken = speech.say("hello", connection, tmp_path / "out.wav", stream=False)
    assert spoken.path.read_bytes() == recorded_wav()
    assert spoken.duration == pytest.approx(SECONDS)


def test_pcm_is_measured_by_its_bytes_and_mp3_by_what_the_service_says(
    connection: Connection, tmp_path: Path
) -> None:
    assert speech.say("hello", connection, tmp_path / "a.pcm", audio_format="pcm").duration == SECONDS
    assert (
        speech.say("hello", connection, tmp_path / "b.mp3", audio_format="mp3", stream=False).duration == 1.25
    )
    assert math.isnan(speech.say("hello", connection, tmp_path / "c.mp3", audio_format="mp3").rtf)


@pytest.fixture
def client_certificate(tmp_path: Path) -> Path:
    return certs.Authority.create(tmp_path / "clients").issue("alice", days=1, scopes=[tokens.Scope.SPEAK])


def test_a_client_certificate_is_shown_and_does_without_a_token(
    certificate: Path, client_certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = StandIn(certificate, tmp_path / "clients" / "ca.pem")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"
    try:
        speech.say("hello", Connection(url, None, certificate, client_certificate), tmp_path / "out.wav")
        assert server.authorization is None
        with pytest.raises(FleetError):
            speech.say("hello", Connection(url, "token", certificate), tmp_path / "out.wav")
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_no_client_certificate_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"absent\.pem cannot be used .*: No such file or directory\."):
        Connection("https://fra1", None, None, tmp_path / "absent.pem")
    (tmp_path / "half.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(FleetError, match=r"half\.pem cannot be used .*: no certificate with its key\."):
        Connection("https://fra1", None, None, tmp_path / "half.pem")


def test_the_service_is_asked_as_openai_clients_ask(
    connection: Connection, service: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    speech.say("hello", connection, tmp_path / "out.flac", audio_format="flac", voice="joe", speed=1.5)
    asked = {"model": "tts-1", "input": "hello", "response_format": "flac", "stream": True}
    assert service.asked[-1] == {**asked, "voice": "joe", "speed": 1.5}
    assert service.authorization == "Bearer token-of-the-operator"


@pytest.mark.parametrize(
    ("text", "message", "next_step"),
    [
        ("no token", r"answered 401: The token has expired\. \(code token_expired\)", "fleet_jwt_key_file"),
        ("no scope", r"answered 403: .* \(code insufficient_scope\)", "--scope NAME"),
        ("too many", r"answered 429: All 4 slots are taken\. \(code too_many_requests\)", "in 7 seconds"),
        (
            "no such voice",
            r"answered 404: 'voice' is 'x'; allowed: joe\. \(code voice_not_found\)",
            "Change what",
        ),
        ("broken", r"answered 500: nothing that says why \(text/html\)", "logs"),
        ("a page", r"answered text/html instead of audio", "logs"),
        ("elsewhere", r"answered 301: nothing that says why", "logs"),
        ("not a wav", r"something that is no WAV", "logs"),
        ("header only", r"answered with no audio", "r-1"),
        ("cut off", r"broke off in the middle of the audio; nothing was written", "Try again"),
    ],
)
def test_a_bad_answer_is_a_sentence_and_no_file(
    connection: Connection, tmp_path: Path, text: str, message: str, next_step: str
) -> None:
    (tmp_path / "out.wav").write_bytes(b"the last good recording")
    with pytest.raises(FleetError, match=message) as caught:
        speech.say(text, connection, tmp_path / "out.wav")
    assert caught.value.exit_code == ExitCode.SERVICE
    assert next_step in caught.value.next_step
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the last good recording"]


def test_an_unknown_authority_is_named_with_what_to_set(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(
        FleetError, match=r"certificate of 127\.0\.0\.1:\d+ is not accepted: self-signed"
    ) as caught:
        speech.say("hello", Connection(connection.url, "t"), tmp_path / "out.wav")
    assert "fleet_ca_file" in caught.value.next_step


def test_an_address_that_the_certificate_does_not_name_is_refused(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    url = connection.url.replace("127.0.0.1", "localhost")
    with pytest.raises(FleetError, match=r"certificate of localhost:\d+ is not accepted: .*mismatch"):
        speech.say("hello", Connection(url, "t", connection.ca_file), tmp_path / "out.wav")


def test_nobody_listening_is_a_sentence(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(FleetError, match=r"127\.0\.0\.1:1 cannot be reached: .*Connection refused\.$"):
        speech.say("hello", Connection("https://127.0.0.1:1", "t", certificate), tmp_path / "out.wav")


def test_what_cannot_work_is_refused_before_anything_is_sent(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="not an https:// address"):
        Connection("http://127.0.0.1", "t")
    with pytest.raises(FleetError, match=r"CA file .* does not exist"):
        Connection("https://127.0.0.1", "t", tmp_path / "ca.pem")
    with pytest.raises(FleetError, match="no format 'aac'"):
        speech.say("hello", connection, tmp_path / "out.aac", audio_format="aac")
    with pytest.raises(FleetError, match="no text to speak"):
        speech.say(" \n", connection, tmp_path / "out.wav")


def test_a_file_that_cannot_be_written_is_a_sentence(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"cannot be written: No such file or directory") as caught:
        speech.say("hello", connection, tmp_path / "absent" / "out.wav")
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.fixture(scope="module")
def inventory(service: StandIn, certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inventory")
    private, _ = tokens.create_key_pair(folder / "jwt")
    variables = {
        "fleet_url": "https://127.0.0.1:{{ port }}",
        "fleet_ca_file": str(certificate),
        "fleet_jwt_key_file": str(private),
        "fleet_jwt_issuer": "fleet-{{ inventory_hostname }}",
        "fleet_jwt_audience": "tts",
    }
    gpu = {"hosts": {"fra1": {"port": service.server_port}}, "vars": variables}
    (folder / "hosts.yml").write_text(json.dumps({"gpu": gpu, "other": {"hosts": {"watch": {}}}}))
    return folder


def test_the_only_gpu_host_is_found_and_gets_a_short_lived_token(
    inventory: Path, service: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LOGNAME", "ada")
    speech.say("hello", speech.connection(inventory / "hosts.yml"), tmp_path / "out.wav")
    (key,) = jwt.PyJWKSet.from_json((inventory / "jwt" / "jwks.json").read_text()).keys
    token = str(service.authorization).removeprefix("Bearer ")
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="tts", issuer="fleet-fra1")
    assert claims["sub"] == "operator:ada"
    assert claims["exp"] - claims["iat"] == 300


def test_a_host_that_does_not_speak_lacks_a_named_variable(inventory: Path) -> None:
    with pytest.raises(FleetError, match="Host watch has no variable fleet_url"):
        speech.connection(inventory / "hosts.yml", "watch")


def test_several_gpu_hosts_need_a_name(inventory: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.yml"
    more.write_text("gpu: {hosts: {fra2: }}\n")
    with pytest.raises(FleetError, match=r"2 hosts that speak.*--host") as caught:
        speech.connection([inventory / "hosts.yml", more])
    assert caught.value.next_step == "Hosts: fra1, fra2."
