"""Refused starts: one sentence on stderr, exit code 2, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SECRET, free_port, service_environment


def run(command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maya1_tts", command],
        env=service_environment(**settings), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither MAYA1_TTS_JWT_SECRET_FILE nor MAYA1_TTS_JWKS_FILE is set"),
        ({"AUTH": "none"}, "MAYA1_TTS_AUTH='none' is refused while MAYA1_TTS_ENVIRONMENT='production'"),
        ({"AUTH": "basic"}, "MAYA1_TTS_AUTH='basic' is refused"),
        ({"PORT": "http"}, "MAYA1_TTS_PORT='http' is refused"),
        ({"PORT": "99999"}, "MAYA1_TTS_PORT='99999' is refused"),
        ({"WORKERS": "0"}, "MAYA1_TTS_WORKERS='0' is refused"),
        ({"ENGINE": "maya2"}, "MAYA1_TTS_ENGINE='maya2' is refused"),
        ({"REDIS_URL": "http://x"}, "allowed: unix:///path/to/socket"),
        ({"REDIS_URL": "redis://:password@x"}, "a password does not belong here"),
        ({"JWT_SECRET_FILE": "/nonexistent"}, "MAYA1_TTS_JWT_SECRET_FILE='/nonexistent' cannot be read"),
        ({"JWKS_FILE": "/nonexistent"}, "MAYA1_TTS_JWKS_FILE='/nonexistent' cannot be read"),
        (
            {"AUTH": "none", "ENVIRONMENT": "development", "REDIS_PASSWORD_FILE": "/nonexistent"},
            "REDIS_PASSWORD_FILE",
        ),
        (
            {"AUTH": "none", "ENVIRONMENT": "development", "DEFAULT_VOICE": "alloy"},
            "'alloy' is unknown; allowed: joe",
        ),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, str], message: str) -> None:
    result = run("serve", PORT=settings.pop("PORT", free_port()), HOST="127.0.0.1", **settings)
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stdout + result.stderr


def test_short_secrets(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET[:31])
    result = run("serve", JWT_SECRET_FILE=path)
    assert result.returncode == 2
    assert "holds 31 bytes; allowed: 32 or more" in result.stderr


def test_voices_and_healthcheck(secret_file: Path) -> None:
    listed = run("voices", JWT_SECRET_FILE=secret_file)
    assert listed.stdout == "joe\ten-US\t22050 Hz\tonnx_voice\tjoe\n"
    assert run("healthcheck", JWT_SECRET_FILE=secret_file, PORT=free_port()).returncode == 1
