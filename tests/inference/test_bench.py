"""`maya1-tts bench`: against the real service, and against a stand-in that answers by a script."""

import asyncio
import datetime
import ipaddress
import itertools
import json
import re
import socketserver
import ssl
import struct
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Service, token
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from maya1_tts.audio import FORMATS
from maya1_tts.bench.client import Answer, Client
from maya1_tts.bench.command import speech_body
from maya1_tts.bench.load import Limit, Load, Run, Seen
from maya1_tts.bench.report import Percentiles, hear, summarise
from maya1_tts.bench.texts import LONG, unique
from maya1_tts.cli import main

RATE = 8000
Script = Callable[
    [int], list[bytes | float]
]  # the request's number to what is sent: bytes, or seconds to wait


def wav(seconds: float) -> bytes:
    data = bytes(round(seconds * RATE) * 2)
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    head = struct.pack("<4sI4s4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16) + fmt
    return head + struct.pack("<4sI", b"data", 0xFFFFFFFF) + data


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class StandIn(socketserver.ThreadingTCPServer):
    """Not a speech server: it sends what the script says, when the script says it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Scripted)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.script = script
        self.bodies: list[bytes] = []
        self.lock = threading.Lock()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of some tests

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Scripted(socketserver.StreamRequestHandler):
    server: StandIn

    def handle(self) -> None:
        while head := self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) and (head := head + line + b"\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = self.rfile.read(length)
            with self.server.lock:
                self.server.bodies.append(body)
                number = len(self.server.bodies) - 1
            for step in self.server.script(number):
                if isinstance(step, float):
                    time.sleep(step)
                elif step == b"":
                    return
                else:
                    self.wfile.write(step)


StandInFactory = Callable[..., StandIn]


@pytest.fixture
def stand_in() -> Iterator[StandInFactory]:
    running: list[StandIn] = []

    def start(script: Script, tls: ssl.SSLContext | None = None) -> StandIn:
        running.append(StandIn(script, tls))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["maya1-tts", "bench", *map(str, arguments)])
        return main()

    return run


def measure(url: str, requests: int = 1, format: str = "wav", timeout: float = 10.0, **headers: str) -> Run:
    """One closed-loop client."""
    client = Client(f"{url}/v1/audio/speech", {"Content-Type": "application/json"} | headers, timeout)
    texts = itertools.repeat("Hello.")
    load = Load(client, speech_body("tts-1", "joe", format, True), texts, format in ("wav", "pcm"))
    return asyncio.run(load.closed(1, Limit(requests=requests)))


# The real service.


def test_a_report_counts_what_the_service_counts(
    service: Service, bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(token() + "\n")
    report, picture = tmp_path / "report.json", tmp_path / "plot.svg"
    answered = {"route": "/v1/audio/speech", "method": "POST", "status": "200"}
    before = (
        service.metric("requests_total", **answered),
        service.metric("cache_requests_total", result="miss"),
    )
    code = bench(
        service.url, "--token-file", tmp_path / "token", "--voice", "joe", "--stream", "--objective", "60s",
        "--concurrency", "1,2", "--requests", 4, "--json", report, "--plot", picture,
    )  # fmt: skip
    assert code == 0, capsys.readouterr()
    warm_up = 3
    assert service.metric("requests_total", **answered) - before[0] == 8 + warm_up
    assert service.metric("cache_requests_total", result="miss") - before[1] == 8 + warm_up  # each was new
    data = json.loads(report.read_text())
    assert data["schema"] == 1
    assert [run["load"] for run in data["runs"]] == ["1 client", "2 clients"]
    for run in data["runs"]:
        assert (run["requests"], run["good"]) == (4, 4)
        assert (run["statuses"], run["errors"]) == ({"200": 4}, {})
        for name in ("ttfa_seconds", "rtf"):
            assert 0 < run[name]["p50"] <= run[name]["p95"] <= run[name]["p99"]
        assert run["goodput_per_second"] == run["requests_per_second"] == pytest.approx(4 / run["seconds"])
        assert 2 < run["audio_seconds_per_second"] * run["seconds"] / 4 < 8  # a short text with three names
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 1 + 2
    assert token() not in report.read_text()
    svg = "{http://www.w3.org/2000/svg}"
    lines = ET.parse(picture).getroot().findall(f"{svg}polyline")
    assert len(lines) == 2
    assert all(line.attrib["points"] for line in lines)


def test_repeat_measures_the_cache(service: Service, bench: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token())
    (tmp_path / "texts").write_text("The bench says this twice.\n\nAnd this.\n")
    before = service.metric("cache_requests_total", result="hit")
    arguments = ("--token-file", tmp_path / "token", "--text-file", tmp_path / "texts", "--repeat")
    assert bench(service.url, *arguments, "--requests", 6) == 0
    assert service.metric("cache_requests_total", result="hit") - before == 6


@pytest.mark.parametrize("format", FORMATS)
def test_audio_is_as_long_as_the_service_says(service: Service, format: str) -> None:
    """Also where the length has to be found by decoding, and is not in the header of the stream."""
    run = measure(service.url, 1, format, Authorization=f"Bearer {token()}")
    told = service.speak("Hello.", response_format=format).headers["x-audio-duration-seconds"]
    # An mp3 stream has up to four frames of silence more than the file.
    tolerance = 0.11 if format == "mp3" else 0.004
    assert hear(run.seen[0], format).audio == pytest.approx(float(told), abs=tolerance)


def test_a_refused_token_ends_the_measurement(
    service: Service, bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = token(key=b"another secret that is long enough..")
    (tmp_path / "token").write_text(wrong)
    assert bench(service.url, "--token-file", tmp_path / "token", "--requests", 1) == 3
    error = capsys.readouterr().err
    assert "status 401" in error
    assert wrong not in error


# The stand-in.


def test_refusals_are_counted_and_change_the_exit_code(
    stand_in: StandInFactory, bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = answer(b"{}", "503 Service Unavailable", "Retry-After: 1")
    server = stand_in(lambda number: [refusal if number % 2 else answer(wav(0.5))])
    report = tmp_path / "report.json"
    assert bench(server.url, "--requests", 10, "--text", "long", "--json", report) == 1
    run = json.loads(report.read_text())["runs"][0]
    assert (run["requests"], run["good"], run["statuses"]) == (10, 5, {"200": 5, "503": 5})
    assert run["audio_seconds_per_second"] * run["seconds"] == pytest.approx(5 * 0.5)
    assert "1 client: failed with 503 x 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([answer(wav(0.5))[:-100], b""], "closed"),
        ([b""], "closed"),
        ([b"SMTP at your service\r\n"], "protocol"),
        ([answer(wav(0.5))[:-100]], "timeout"),
        ([answer(b"no sound")], "not_audio"),
        ([answer(wav(0))], "not_audio"),
    ],
)
def test_what_goes_wrong_has_a_name(stand_in: StandInFactory, steps: list[bytes | float], error: str) -> None:
    """And the request after it is not harmed by it."""
    server = stand_in(lambda number: [answer(wav(0.5))] if number else steps)
    summary = summarise(measure(server.url, 2, timeout=0.5 if error == "timeout" else 10), "wav", 10)
    assert (summary.requests, summary.good, summary.errors) == (2, 1, {error: 1})


def test_servers_of_all_kinds_are_understood(stand_in: StandInFactory) -> None:
    """Chunked, with the header in a piece of its own; HTTP/1.0, where the connection ends with the answer."""
    sound = wav(0.5)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (sound[:44], sound[44:], b""))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    old = b"HTTP/1.0 200 OK\r\n\r\n" + sound
    server = stand_in(lambda number: [old, b""] if number % 2 else [chunked])
    run = measure(server.url, 4)
    assert [seen.error for seen in run.seen] == [""] * 4
    assert [hear(seen, "wav").audio for seen in run.seen] == [0.5] * 4


def test_a_header_is_no_sound_and_a_pause_is_an_underrun(stand_in: StandInFactory) -> None:
    sound = wav(0.25)
    whole = answer(sound)
    body = len(whole) - len(sound)
    quarter = body + 44 + 1000  # 1/16 s of sound
    script: list[bytes | float] = [whole[: body + 44], 0.2, whole[body + 44 : quarter], 0.4, whole[quarter:]]
    heard = hear(measure(stand_in(lambda number: script).url).seen[0], "wav")
    assert heard.ttfa >= 0.2
    assert len(heard.stalls) == 1
    assert max(heard.gaps) > heard.stalls[0]


def test_a_slow_tail_is_seen_in_the_percentiles(stand_in: StandInFactory) -> None:
    server = stand_in(lambda number: [0.5 if number == 7 else 0.0, answer(wav(0.5))])
    summary = summarise(measure(server.url, 20), "wav", 0.4)
    ttfa = summary.ttfa_seconds
    assert ttfa.p50 is not None
    assert ttfa.p99 is not None
    assert ttfa.p99 >= 0.5 > ttfa.p50
    assert summary.goodput_per_second == pytest.approx(summary.requests_per_second * 19 / 20)


def test_an_open_loop_counts_the_wait_before_sending(stand_in: StandInFactory) -> None:
    server = stand_in(lambda number: [answer(wav(0.5))])
    body = speech_body("tts-1", None, "wav", False)

    def slow_once(text: str) -> bytes:
        if not slow_once.calls:  # type: ignore[attr-defined]
            time.sleep(0.5)  # the tool itself hangs
        slow_once.calls += 1  # type: ignore[attr-defined]
        return body(text)

    slow_once.calls = 0  # type: ignore[attr-defined]

    def run(make: Callable[[str], bytes]) -> Run:
        load = Load(Client(server.url + "/", {}), make, unique(("Hello.",)))
        return asyncio.run(load.open(100, Limit(requests=10), seed=1))

    calm, held_up = run(body), run(slow_once)
    dues = [np.diff(sorted(seen.due for seen in one.seen)) for one in (calm, held_up)]
    assert np.allclose(*dues)  # the schedule is the seed's, whatever happens
    late = [seen for seen in held_up.seen if seen.sent - seen.due > 0.2]
    assert len(late) >= 5
    assert all(hear(seen, "wav").ttfa > 0.2 for seen in late)


def test_a_private_authority_can_be_trusted(
    stand_in: StandInFactory, bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem, key_file = tmp_path / "ca.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem, key_file)
    server = stand_in(lambda number: [answer(wav(0.5))], tls)
    assert bench(server.url, "--requests", 2, "--ca-file", pem) == 0
    capsys.readouterr()
    assert bench(server.url, "--requests", 2) == 3
    assert "certificate verify failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ftp://host"], "ftp://host"),
        (["http://host", "--concurrency", "0"], "'0'"),
        (["http://host", "--duration", "10"], "'10'"),
        (["http://host", "--rate", "-1"], "-1"),
        (["http://host", "--plot", "plot.png"], "plot.png"),
        (["http://host", "--token-file", "/nowhere"], "--token-file '/nowhere'"),
        (["http://host", "--ca-file", "/nowhere"], "--ca-file '/nowhere'"),
        (["http://host", "--text-file", "/dev/null"], "--text-file '/dev/null'"),
    ],
)
def test_wrong_options_are_named(
    bench: Callable[..., int], arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = bench(*arguments)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


# Arithmetic.


def test_what_a_listener_hears_is_exact() -> None:
    """1 s of sound at 10 s, 0.5 s of it at once; 0.25 s more comes at 10.75 s, and the rest at 11.25 s."""
    pcm = Answer(
        200, {"x-sample-rate": str(RATE)}, bytearray(), [(10.0, 8000), (10.75, 12000), (11.25, 16000)]
    )
    heard = hear(Seen(due=9.5, sent=9.75, end=11.5, answer=pcm), "pcm")
    assert (heard.ttfa, heard.audio, heard.rtf) == (0.5, 1.0, 2.0)
    assert heard.gaps == [0.75, 0.5]
    assert heard.stalls == [0.25, 0.25]  # dry at 10.5, and again at 11.0


def test_percentiles_are_values_that_were_measured() -> None:
    assert Percentiles.of([float(value) for value in range(100, 0, -1)]) == Percentiles(50, 95, 99)
    assert Percentiles.of([7.0]) == Percentiles(7, 7, 7)
    assert Percentiles.of([]) == Percentiles(None, None, None)


def test_no_sentence_comes_twice() -> None:
    texts = unique(LONG, first=0)
    sentences = [part for _ in range(5000) for part in re.split(r"(?<=[.!?])\s+", next(texts))]
    assert len(set(sentences)) == len(sentences) == 32_500
