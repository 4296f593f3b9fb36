"""The HTTP interface over the real engine: formats, streams, OpenAI's client, and every way to be refused."""

import json
import socket
from pathlib import Path

import openai
import pytest
from conftest import TEXT, Service, token
from maya1_tts.audio import FORMATS
from test_audio import FRAME, by_ffmpeg, by_libsndfile

LONG = "The sun came up. The birds began to sing, and the cat went home. It was a quiet day in the town."


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_as_long_as_its_pcm(service: Service, format: str) -> None:
    pcm = service.speak(LONG)
    answer = service.speak(LONG, response_format=format)
    expected = len(pcm.content) // 2
    samples, rate = by_libsndfile(answer.content, format)
    assert abs(len(samples) * 22050 / rate - expected) <= FRAME[format] + 1
    assert abs(len(by_ffmpeg(answer.content, format)) - expected) <= FRAME[format] + (
        32 if format == "opus" else 0
    )
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert float(answer.headers["x-audio-duration-seconds"]) == pytest.approx(expected / 22050, abs=0.001)


def test_headers_tell_who_spoke_and_how_fast(service: Service) -> None:
    answer = service.http.post(
        "/v1/audio/speech", json={"model": "tts-1", "input": TEXT}, headers={"X-Request-Id": "abc-1"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/mpeg"
    wanted = {"x-engine": "onnx_voice", "x-voice": "joe", "x-request-id": "abc-1", "x-sample-rate": "22050"}
    assert wanted.items() <= dict(answer.headers).items()
    assert float(answer.headers["x-ttfa-seconds"]) > 0
    assert float(answer.headers["x-rtf"]) >= 0


def test_a_stream_has_the_samples_of_the_whole(tmp_path: Path) -> None:
    # Without a cache, so that both are really spoken.
    service = Service(tmp_path, ENVIRONMENT="development", AUTH="none").wait_until_ready()
    try:
        whole = service.speak(LONG)
        stream = service.speak(LONG, stream=True)
        assert (whole.headers["x-cache"], stream.headers["x-cache"]) == ("bypass", "bypass")
        assert "content-length" not in stream.headers
        assert stream.content == whole.content
        for format in ("wav", "flac"):
            data = service.speak(LONG, stream_format="audio", response_format=format).content
            assert by_ffmpeg(data, format).tobytes() == whole.content
        for format in ("mp3", "opus"):
            data = service.speak(LONG, stream=True, response_format=format).content
            assert len(by_ffmpeg(data, format)) >= len(whole.content) // 2 - 32
        assert service.metric("syntheses_total", outcome="done") == 6
    finally:
        service.stop()


def test_speed_changes_the_duration(service: Service) -> None:
    normal = len(service.speak(LONG).content)
    for speed in (0.5, 1.5, 4.0):
        assert len(service.speak(LONG, speed=speed).content) * speed / normal == pytest.approx(1, rel=0.15)


def test_openai_client(service: Service, tmp_path: Path) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=token(), max_retries=0)
    speech = client.audio.speech.create(
        model="tts-1", voice="joe", input=TEXT, response_format="wav", speed=1.1
    )
    assert speech.content[:4] == b"RIFF"
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="joe", input=TEXT
    ) as stream:
        stream.stream_to_file(tmp_path / "speech.mp3")
    assert len(by_ffmpeg((tmp_path / "speech.mp3").read_bytes(), "mp3")) > 22050
    assert {model.id for model in client.models.list()} == {
        "onnx_voice",
        "tts-1",
        "tts-1-hd",
        "gpt-4o-mini-tts",
    }
    assert client.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("maya1")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="instructions"):
        client.audio.speech.create(model="tts-1", voice="joe", input=TEXT, instructions="Whisper.")
    with pytest.raises(openai.AuthenticationError) as refused:
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert refused.value.code == "invalid_token"


def test_voices(service: Service) -> None:
    assert service.http.get("/v1/audio/voices").json() == {
        "voices": [
            {
                "id": "joe",
                "name": "joe",
                "language": "en-US",
                "sample_rate": 22050,
                "engine": "onnx_voice",
                "options": [],
                "tags": [],
            }
        ]
    }


GOOD = {"model": "tts-1", "voice": "joe", "input": "Hello."}
DROP = object()
REFUSED: list[tuple[dict[str, object], int, str, str | None]] = [
    ({"input": ""}, 400, "empty_input", "input"),
    ({"input": " \n\t "}, 400, "empty_input", "input"),
    ({"input": "😀👍🏽"}, 400, "empty_input", "input"),
    ({"input": "<laugh> ... !"}, 400, "empty_input", "input"),
    ({"input": "a" * 4097}, 400, "input_too_long", "input"),
    ({"input": DROP}, 400, "missing_parameter", "input"),
    ({"input": 7}, 400, "invalid_value", "input"),
    ({"input": None}, 400, "invalid_value", "input"),
    ({"input": ["a"]}, 400, "invalid_value", "input"),
    ({"input": "a\x00b"}, 400, "invalid_characters", "input"),
    ({"input": "a\x1b[31mb"}, 400, "invalid_characters", "input"),
    ({"input": "a\x85b"}, 400, "invalid_characters", "input"),
    ({"input": "half \ud83d"}, 400, "invalid_characters", "input"),
    ({"input": "こんにちは"}, 400, "unsupported_characters", "input"),
    ({"model": "maya1"}, 404, "model_not_found", "model"),
    ({"model": DROP}, 400, "missing_parameter", "model"),
    ({"model": "\ud83d"}, 404, "model_not_found", "model"),
    ({"voice": "alloy"}, 404, "voice_not_found", "voice"),
    ({"voice": ""}, 404, "voice_not_found", "voice"),
    ({"voice": {"id": "joe"}}, 400, "invalid_value", "voice"),
    ({"response_format": "aac"}, 400, "unsupported_format", "response_format"),
    ({"response_format": None}, 400, "unsupported_format", "response_format"),
    ({"speed": 0.2}, 400, "invalid_value", "speed"),
    ({"speed": 4.01}, 400, "invalid_value", "speed"),
    ({"speed": float("nan")}, 400, "invalid_json", None),
    ({"speed": float("inf")}, 400, "invalid_json", None),
    ({"speed": "1"}, 400, "invalid_value", "speed"),
    ({"speed": True}, 400, "invalid_value", "speed"),
    ({"stream": "yes"}, 400, "invalid_value", "stream"),
    ({"sample_rate": 22050}, 400, "invalid_value", "sample_rate"),
    ({"timestamps": "letter"}, 400, "invalid_value", "timestamps"),
    ({"timestamps": "word"}, 400, "invalid_value", "timestamps"),
    ({"timestamps": "segment", "stream": True}, 400, "unsupported_parameter", "timestamps"),
    ({"timestamps": "segment", "stream_format": "audio"}, 400, "unsupported_parameter", "timestamps"),
    ({"stream_format": "raw"}, 400, "invalid_value", "stream_format"),
    ({"instructions": "Be happy."}, 400, "unsupported_parameter", "instructions"),
    ({"temperature": 0.4}, 400, "unsupported_parameter", "temperature"),
    ({"temperature": 3}, 400, "invalid_value", "temperature"),
    ({"seed": 1}, 400, "unsupported_parameter", "seed"),
    ({"seed": -1}, 400, "invalid_value", "seed"),
    ({"description": "A pirate."}, 400, "unsupported_parameter", "description"),
    ({"emotion": "happy"}, 400, "unknown_parameter", "emotion"),
    ({"\ud83d": 1}, 400, "unknown_parameter", "\\ud83d"),
]


def name_of(case: object) -> str | None:
    return ascii(case)[:50] if isinstance(case, dict) else None


@pytest.mark.parametrize(("change", "status", "code", "param"), REFUSED, ids=name_of)
def test_wrong_fields(
    service: Service, change: dict[str, object], status: int, code: str, param: str | None
) -> None:
    body = {name: value for name, value in (GOOD | change).items() if value is not DROP}
    answer = service.http.post(
        "/v1/audio/speech", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    expect_error(answer, status, code)
    assert answer.json()["error"]["param"] == param
    assert "allowed" in answer.json()["error"]["message"] or code == "invalid_json"


def expect_error(answer: object, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]
    error = answer.json()["error"]  # type: ignore[attr-defined]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert len(error["message"]) < 400
    assert "Traceback" not in answer.text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"[" * 30000,
        b'{"speed": ' + b"9" * 5000 + b"}",
        b"{'a': 1}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bodies_that_are_no_json_object(service: Service, body: bytes) -> None:
    answer = service.http.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    expect_error(answer, 400, "invalid_json")


def test_other_content_types(service: Service) -> None:
    for headers in ({"Content-Type": "text/plain"}, {}):
        answer = service.http.post("/v1/audio/speech", content=json.dumps(GOOD).encode(), headers=headers)
        expect_error(answer, 415, "unsupported_media_type")
    expect_error(service.http.post("/v1/audio/speech", data={"input": "a"}), 415, "unsupported_media_type")
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert service.http.post("/v1/audio/speech", json=GOOD, headers=charset).status_code == 200


def test_too_large_bodies_announced_and_chunked(service: Service) -> None:
    body = json.dumps(GOOD | {"input": "a" * 70000}).encode()
    headers = {"Content-Type": "application/json"}
    expect_error(service.http.post("/v1/audio/speech", content=body, headers=headers), 413, "body_too_large")
    parts = (body[start : start + 1000] for start in range(0, len(body), 1000))
    expect_error(service.http.post("/v1/audio/speech", content=parts, headers=headers), 413, "body_too_large")


def test_unknown_routes_and_methods(service: Service) -> None:
    expect_error(service.http.get("/v1/nothing"), 404, "not_found")
    expect_error(service.http.get("/docs"), 404, "not_found")
    expect_error(service.http.put("/v1/audio/speech"), 405, "method_not_allowed")
    expect_error(service.http.delete("/v1/models"), 405, "method_not_allowed")
    assert service.http.put("/v1/audio/jobs").headers["allow"] == "GET, POST"
    expect_error(service.http.get("/v1/models/nothing"), 404, "model_not_found")


def test_garbage_on_the_socket_harms_nothing(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert service.speak().status_code == 200


def test_neither_texts_nor_tokens_are_logged(service: Service) -> None:
    service.speak("The secret word is marmalade.")
    service.speak("<laugh>", voice="marmalade")
    lines = [json.loads(line) for line in service.log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "marmalade" not in service.log
    assert token()[:20] not in service.log


def test_metrics_have_values_after_one_request(service: Service) -> None:
    service.speak()
    speech = {"method": "POST", "route": "/v1/audio/speech", "status": "200"}
    assert service.metric("requests_total", **speech) > 0
    assert service.metric("request_duration_seconds_count", route="/v1/audio/speech") > 0
    assert service.metric("ttfa_seconds_count", cache="miss") > 0
    assert service.metric("cache_up", tier="redis") == 1
    for name in ("rtf_count", "audio_seconds_total", "ready", "workers", "queue_limit"):
        assert service.metric(name) > 0, name
    assert service.metric("engine_info", engine="onnx_voice", voices="1") == 1
    assert service.metric("build_info", version="0.1.0") == 1
    text = service.http.get("/metrics").text
    for name in ("queue_depth", "active_syntheses", 'cache_errors_total{tier="redis"}'):
        assert f"\nmaya1_tts_{name} 0.0" in text


def test_probes_need_no_token(service: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert service.http.get(path, headers={"Authorization": ""}).status_code == 200
