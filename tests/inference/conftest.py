"""The real service as a subprocess, a real Redis, real tokens. Nothing waits for a time, only for a state."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

INFERENCE = Path(__file__).parents[2] / "inference"
sys.path.insert(0, str(INFERENCE))

SECRET = b"a secret for tests, at least 32 bytes"
ISSUER, AUDIENCE = "https://tests.example", "maya1-tests"
TEXT = "My brother has three dogs and two small cats."


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"this test needs the program {name!r}; on Debian: apt-get install redis-server ffmpeg")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """The limit only keeps a broken test from hanging; none passes or fails by how long something takes."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"gave up waiting: {what}")
        time.sleep(0.02)


def token(
    key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, str] | None = None, **claims: Any
) -> str:
    body: dict[str, Any] = {
        "exp": time.time() + 7200,  # longer than all tests take: a service keeps its client
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "tests",
        "scope": "speak",
    }
    body |= claims
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers=headers)


class Redis:
    """A real redis-server on a unix socket, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [program("redis-server"), "--port", "0", "--unixsocket", str(self.socket), "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        wait_for(self.socket.exists, "redis-server opens its socket")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)


class Service:
    """`python -m maya1_tts serve` with the given settings."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "service.log"
        self.environment = service_environment(HOST="127.0.0.1", PORT=self.port, **settings)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "maya1_tts", "serve"], env=self.environment, stdout=log, stderr=log
            )
        self.http = httpx.Client(
            base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {token()}"}
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def status(self, path: str) -> int:
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    def wait_until_ready(self) -> "Service":
        def ready() -> bool:
            assert self.process.poll() is None, self.log
            return self.status("/readyz") == 200

        wait_for(ready, "the service is ready")
        return self

    def speak(self, text: str = TEXT, **fields: object) -> httpx.Response:
        body = {"model": "tts-1", "voice": "joe", "input": text, "response_format": "pcm"} | fields
        return self.http.post("/v1/audio/speech", json=body)

    def metric(self, name: str, **labels: str) -> float:
        wanted = (
            "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
            if labels
            else ""
        )
        for line in self.http.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == f"maya1_tts_{name}{wanted}":
                return float(value)
        return 0.0

    def stop(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def service_environment(**settings: object) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAYA1_TTS_")}
    chosen = {f"MAYA1_TTS_{name}": str(value) for name, value in settings.items()}
    return inherited | {"PYTHONPATH": str(INFERENCE), "PYTHONDONTWRITEBYTECODE": "1"} | chosen


@pytest.fixture(scope="session")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "jwt"
    path.write_bytes(SECRET + b"\n")
    return path


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, secret_file: Path) -> Iterator[Service]:
    """One service with tokens and a cache, for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("service")
    redis = Redis(folder)
    redis.start()
    running = Service(
        folder, JWT_SECRET_FILE=secret_file, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, REDIS_URL=redis.url
    )
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()
        redis.kill()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODEL_DIR with the tiny Maya1 in it: real architecture, token layout and codec, random weights."""
    import torch
    from maya1_tts.engines.maya1.tiny import make_tiny_model

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "maya1")
    return folder
