"""The real service with engine maya1 on the tiny model: what a client sees."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Service, free_port, service_environment, wait_for

HELLO = "Hello there."
LANES = 6


@pytest.fixture(scope="module")
def maya1(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Without a cache, so that everything is really spoken."""
    running = Service(
        tmp_path_factory.mktemp("maya1"), ENVIRONMENT="development", AUTH="none", ENGINE="maya1",
        MODEL_DIR=model_dir, MAYA1_DEVICE="cpu", MAYA1_MAX_BATCH=LANES,
    )  # fmt: skip
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def speak(service: Service, text: str = HELLO, **fields: Any) -> httpx.Response:
    body = {"model": "maya1", "input": text, "response_format": "pcm"} | fields
    return service.http.post("/v1/audio/speech", json=body, timeout=300)


def test_a_stream_has_the_samples_of_the_whole(maya1: Service) -> None:
    text = "One sentence. <laugh>\nAnd another one."
    whole, stream = speak(maya1, text, speed=1.5), speak(maya1, text, speed=1.5, stream=True)
    assert whole.status_code == stream.status_code == 200
    assert len(whole.content) > 24000
    assert stream.content == whole.content
    assert "content-length" not in stream.headers
    wanted = {"x-engine": "maya1", "x-voice": "nora", "x-sample-rate": "24000", "x-cache": "bypass"}
    assert wanted.items() <= dict(whole.headers).items()


def test_a_seed_gives_the_same_samples_and_another_one_others(maya1: Service) -> None:
    first, again, other = (speak(maya1, seed=seed).content for seed in (7, 7, 8))
    assert first == again != other


def test_many_requests_share_each_step(maya1: Service) -> None:
    steps, rows = maya1.metric("acoustic_batch_size_count"), maya1.metric("acoustic_batch_size_sum")
    with ThreadPoolExecutor(LANES) as pool:
        answers = list(pool.map(lambda seed: speak(maya1, seed=seed), range(LANES)))
    assert [answer.status_code for answer in answers] == [200] * LANES
    steps, rows = (
        maya1.metric("acoustic_batch_size_count") - steps,
        maya1.metric("acoustic_batch_size_sum") - rows,
    )
    assert rows / steps > 2
    alone = [speak(maya1, seed=seed).content for seed in (0, 3)]
    assert alone == [answers[0].content, answers[3].content]


def test_a_client_that_leaves_stops_the_model(maya1: Service) -> None:
    begin = maya1.metric("acoustic_batch_size_sum")
    speak(maya1, seed=1)
    usual = maya1.metric("acoustic_batch_size_sum") - begin
    cancelled = maya1.metric("syntheses_total", outcome="cancelled")
    body = {"model": "maya1", "input": "word " * 400, "response_format": "pcm", "stream": True}
    with maya1.http.stream("POST", "/v1/audio/speech", json=body, timeout=300) as answer:
        next(answer.iter_bytes())
    wait_for(lambda: maya1.metric("syntheses_total", outcome="cancelled") > cancelled, "it is cancelled")
    left = maya1.metric("acoustic_batch_size_sum")
    speak(maya1, seed=1)
    # All that was drawn since belongs to the second request, but for a step under way.
    assert maya1.metric("acoustic_batch_size_sum") - left <= usual + 1
    assert maya1.metric("active_syntheses") == 0


def test_openais_client_describes_a_voice(maya1: Service) -> None:
    client = openai.OpenAI(base_url=f"{maya1.url}/v1", api_key="none", max_retries=0, timeout=300)
    create = client.audio.speech.create
    made = [
        create(
            model="tts-1", voice="design", input=HELLO, response_format="wav", instructions=instructions
        ).content
        for instructions in ("An old pirate.", "A young queen.")
    ]
    assert all(sound[:4] == b"RIFF" for sound in made)
    assert made[0] != made[1]
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="tts-1", voice="design", input=HELLO)
    assert caught.value.code == "missing_parameter"


def test_voices(maya1: Service) -> None:
    voices = maya1.http.get("/v1/audio/voices").json()["voices"]
    assert [voice["id"] for voice in voices] == ["nora", "miles", "edith", "arjun", "design"]
    assert {(voice["sample_rate"], voice["engine"]) for voice in voices} == {(24000, "maya1")}
    assert all({"description", "seed"} <= set(voice["options"]) for voice in voices)
    assert all(len(voice["tags"]) == 20 for voice in voices)


REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"input": "Hello <happy> there."}, "unknown_tag", "input"),
    ({"input": "... !"}, "empty_input", "input"),
    ({"description": "A man.", "instructions": "A woman."}, "invalid_value", "instructions"),
    ({"description": "a" * 501}, "invalid_value", "description"),
    ({"seed": 2**32}, "invalid_value", "seed"),
    ({"seed": 1.5}, "invalid_value", "seed"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"repetition_penalty": 0.9}, "invalid_value", "repetition_penalty"),
]


@pytest.mark.parametrize(("change", "code", "param"), REFUSED, ids=lambda case: str(case)[:40])
def test_wrong_fields(maya1: Service, change: dict[str, object], code: str, param: str) -> None:
    answer = maya1.http.post("/v1/audio/speech", json={"model": "maya1", "input": HELLO} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert "allowed" in error["message"]


def test_texts_and_descriptions_are_not_logged(maya1: Service) -> None:
    speak(maya1, "Marmalade.", description="A zebra.")
    speak(maya1, "Marmalade <zebra>.")
    assert "armalade" not in maya1.log
    assert "zebra" not in maya1.log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ENVIRONMENT": "production", "AUTH": "jwt"}, "random weights, which is refused"),
        ({"MODEL_DIR": "/nonexistent"}, "/nonexistent/maya1/SHA256SUMS cannot be read"),
        ({"MAYA1_BACKEND": "vllm"}, "MAYA1_TTS_MAYA1_BACKEND='vllm' needs vLLM"),
        ({"DEFAULT_VOICE": "joe"}, "allowed: nora, miles, edith, arjun, design"),
    ],
)
def test_a_start_that_cannot_work_is_refused(
    model_dir: Path, secret_file: Path, change: dict[str, str], said: str
) -> None:
    settings = {
        "ENVIRONMENT": "development", "AUTH": "none", "ENGINE": "maya1", "MODEL_DIR": model_dir,
        "MAYA1_DEVICE": "cpu", "JWT_SECRET_FILE": secret_file, "PORT": free_port(), "HOST": "127.0.0.1",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "maya1_tts", "serve"],
        env=service_environment(**(settings | change)), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
