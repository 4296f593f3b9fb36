"""The audit log: a line for each request for speech whatever came of it, and in none a text or a token."""

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import AUDIENCE, ISSUER, Service, token, wait_for
from gate import Running
from maya1_tts.audit import Audit, Record
from maya1_tts.config import Settings
from maya1_tts.errors import ConfigError
from maya1_tts.logs import JsonFormatter


@pytest.fixture(scope="module")
def running(secret_file: Path) -> Iterator[Running]:
    service = Running(auth="jwt", jwt_secret_file=secret_file, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    service.http.headers["Authorization"] = f"Bearer {token(sub='me', tenant='acme')}"
    try:
        yield service.get_ready()
    finally:
        service.stop()


class Log:
    def __init__(self, captured: pytest.LogCaptureFixture) -> None:
        self._captured = captured

    def all(self) -> list[str]:
        return [JsonFormatter().format(record) for record in list(self._captured.records)]

    def audit(self) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.all()) if line["logger"] == "maya1_tts.audit"]

    def only(self) -> dict[str, Any]:
        """The line of the only request of this test, once it is there."""
        wait_for(self.audit, "the audit line")
        (line,) = self.audit()
        return line


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO)
    return Log(caplog)


def ask(running: Running, text: str, stream: bool = False, **headers: str) -> httpx.Response:
    request = running.request(text, stream)
    request.headers.update(headers)
    return running.http.send(request)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answered_request(running: Running, log: Log, stream: bool) -> None:
    running.engine.permits.release(2)
    answer = ask(running, "marmalade toast", stream, **{"X-Request-Id": "abc-1"})
    assert answer.status_code == 200
    line = log.only()
    expected = {
        "message": "speech", "request_id": "abc-1", "route": "/v1/audio/speech", "client": "127.0.0.1",
        "subject": "me", "tenant": "acme", "chars": 15, "engine": "gate", "voice": "tone", "format": "pcm",
        "cache": "bypass", "audio_seconds": 0.2, "outcome": "done", "status": 200,
        "text_sha256": hashlib.sha256(b"marmalade toast").hexdigest(),
    }  # fmt: skip
    assert expected.items() <= line.items()
    assert set(line) - set(expected) == {"time", "level", "logger", "seconds", "ttfa_seconds", "rtf"}
    assert 0 < line["ttfa_seconds"] <= line["seconds"]
    assert "marmalade" not in "".join(log.all())


def test_a_file_that_is_fetched(running: Running, log: Log) -> None:
    running.engine.permits.release(2)
    fields = {"model": "gate", "input": "marmalade bread", "response_format": "pcm"}
    answer = running.http.get("/v1/audio/speech", params=fields)
    assert answer.status_code == 200, answer.text
    line = log.only()
    assert (line["chars"], line["outcome"], line["subject"]) == (15, "done", "me")
    service = [line for line in log.all() if "httpx" not in line]
    assert "marmalade" not in "".join(service)


@pytest.mark.parametrize(
    ("text", "claims", "status", "code", "known"),
    [
        ("marmalade", None, 401, "missing_token", {}),
        ("marmalade", {"exp": 1}, 401, "token_expired", {}),
        ("marmalade", {"sub": "you", "scope": "jobs"}, 403, "insufficient_scope", {"subject": "you"}),
        ("marmalade" * 5000, {"sub": "you"}, 400, "input_too_long", {"subject": "you", "chars": 45000}),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_refused_request(
    running: Running,
    log: Log,
    text: str,
    claims: dict[str, Any] | None,
    status: int,
    code: str,
    known: dict[str, Any],
) -> None:
    bearer = f"Bearer {token(**claims)}" if claims else ""
    assert ask(running, text, Authorization=bearer).status_code == status
    line = log.only()
    assert (line["outcome"], line["status"], line["code"]) == ("refused", status, code)
    assert known.items() <= line.items()
    assert "audio_seconds" not in line
    assert "marmalade" not in "".join(log.all())
    assert not claims or bearer[7:40] not in "".join(log.all())


def test_a_failed_request(running: Running, log: Log) -> None:
    running.engine.permits.release(1)
    assert ask(running, "explode").status_code == 500
    line = log.only()
    assert (line["outcome"], line["status"], line["code"]) == ("failed", 500, "synthesis_failed")
    assert line["subject"] == "me"


def test_a_stream_that_breaks_off(running: Running, log: Log) -> None:
    running.engine.permits.release(2)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(running, "one explode", stream=True)
    line = log.only()
    assert (line["outcome"], line["status"], line["code"]) == ("failed", 200, "synthesis_failed")
    assert line["audio_seconds"] == 0.1


def test_events_that_end_in_an_error(running: Running, log: Log) -> None:
    running.engine.permits.release(2)
    answer = running.http.send(running.request("one explode", stream_format="sse"))
    assert '"type": "error"' in answer.text
    line = log.only()
    assert (line["outcome"], line["status"], line["code"]) == ("failed", 200, "synthesis_failed")


def test_a_client_that_leaves_while_it_hears(running: Running, log: Log) -> None:
    running.engine.permits.release(1)
    request = running.request("a b c")
    with httpx.Client(timeout=60) as client:
        answer = client.send(request, stream=True)
        pieces = answer.iter_raw()
        next(pieces)
        assert log.audit() == []  # written when it is over
        answer.close()
    line = log.only()
    assert (line["outcome"], line["status"], line["audio_seconds"]) == ("cancelled", 200, 0.1)


def test_a_client_that_leaves_before_it_hears(running: Running, log: Log) -> None:
    running.leave_early("d e f")
    line = log.only()
    assert (line["outcome"], line["status"], line["chars"]) == ("cancelled", 499, 5)


def test_only_requests_for_speech_are_audited(running: Running, log: Log) -> None:
    assert running.http.get("/v1/models").status_code == 200
    assert running.http.put("/v1/audio/speech").status_code == 405
    assert log.audit() == []


def test_a_key_makes_the_digest_one_that_nobody_can_guess(tmp_path: Path, log: Log) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"a key for tests\n")
    audit = Audit(Settings(audit_hash_key_file=key))
    audit.write(Record("1", "/here", text="yes \ud83d"), "refused", 400, "invalid_characters")
    line = log.only()
    digest = hmac.new(b"a key for tests", "yes \ud83d".encode("utf-8", "surrogatepass"), hashlib.sha256)
    assert line["text_hmac_sha256"] == digest.hexdigest()
    assert not {"text", "text_sha256"} & set(line)
    with pytest.raises(ConfigError, match=r"AUDIT_HASH_KEY_FILE=.* cannot be read"):
        Audit(Settings(audit_hash_key_file=tmp_path / "absent"))


def test_the_text_is_written_where_that_is_asked_for_and_at_any_log_level(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)
    Audit(Settings(audit_text=True)).write(Record("1", "/here", text="marmalade"), "done", 200, None)
    assert log.only()["text"] == "marmalade"


def test_the_line_is_on_stdout_and_names_who_the_proxy_says(service: Service) -> None:
    body = {"model": "tts-1", "voice": "joe", "input": "Good morning."}
    headers = {"X-Forwarded-For": "192.0.2.7", "X-Request-Id": "audited"}
    assert service.http.post("/v1/audio/speech", json=body, headers=headers).status_code == 200

    def audited() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in service.log.splitlines()]
        return [
            line for line in lines if line["logger"] == "maya1_tts.audit" and line["request_id"] == "audited"
        ]

    wait_for(audited, "the audit line")
    (line,) = audited()
    assert (line["client"], line["subject"], line["outcome"]) == ("192.0.2.7", "tests", "done")
