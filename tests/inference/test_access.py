"""Which token opens which route.

A route that is not in the table fails: somebody has to decide who may use it.
"""

import asyncio
from pathlib import Path

import httpx
import pytest
from conftest import AUDIENCE, ISSUER, Service, token
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from maya1_tts.api import Service as Inside
from maya1_tts.api import create_app
from maya1_tts.auth import SCOPES
from maya1_tts.config import Settings

PUBLIC, ANY_TOKEN = "public", "any token"
NEEDS = {
    ("POST", "/v1/audio/speech"): "speak",
    ("GET", "/v1/audio/speech"): "speak",
    ("WEBSOCKET", "/v1/audio/speech/ws"): "speak",
    ("POST", "/v1/audio/jobs"): "jobs",
    ("GET", "/v1/audio/jobs"): "jobs",
    ("GET", "/v1/audio/jobs/{id}"): "jobs",
    ("GET", "/v1/audio/jobs/{id}/result"): "jobs",
    ("DELETE", "/v1/audio/jobs/{id}"): "jobs",
    ("GET", "/v1/models"): ANY_TOKEN,
    ("GET", "/v1/models/{model}"): ANY_TOKEN,
    ("GET", "/v1/audio/voices"): ANY_TOKEN,
    ("GET", "/"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/livez"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/metrics"): PUBLIC,
}


@pytest.fixture(scope="module")
def inside(secret_file: Path) -> Inside:
    """A service whose engine is never loaded: who is let in gets 503 or 400, and that is enough here."""
    settings = Settings(jwt_secret_file=secret_file, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    return Inside(settings, lambda settings: pytest.fail("nobody asked for an engine"))


@pytest.fixture(scope="module")
def app(inside: Inside) -> FastAPI:
    return create_app(inside)


def ask(app: FastAPI, method: str, path: str, bearer: str | None) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:
            headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
            return await client.request(method, path.format(model="tts-1", id="x"), headers=headers)

    return asyncio.run(send())


def test_every_route_has_a_decision(app: FastAPI) -> None:
    there = {
        (method, str(route.path))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or {"WEBSOCKET"}
    }
    assert there == NEEDS.keys()


@pytest.mark.parametrize(("method", "path"), [route for route in NEEDS if route[0] != "WEBSOCKET"])
def test_tokens_open_what_their_scopes_name(app: FastAPI, method: str, path: str) -> None:
    needed = NEEDS[method, path]
    stranger = ask(app, method, path, None)
    assert (stranger.status_code == 401) == (needed != PUBLIC)
    for scope in ("", "unknown", *sorted(SCOPES)):
        answer = ask(app, method, path, token(scope=scope))
        if needed in (PUBLIC, ANY_TOKEN, scope):
            assert answer.status_code not in (401, 403), scope
        else:
            assert answer.status_code == 403, scope


def test_a_missing_scope_is_named(app: FastAPI, inside: Inside) -> None:
    answer = ask(app, "POST", "/v1/audio/speech", token(scope="jobs admin"))
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
    assert "'speak'" in error["message"]
    assert "'admin', 'jobs'" in error["message"]
    assert (
        answer.headers["www-authenticate"]
        == 'Bearer realm="maya1-tts", error="insufficient_scope", scope="speak"'
    )
    count = inside.metrics.registry.get_sample_value
    assert count("maya1_tts_auth_failures_total", {"code": "insufficient_scope"})


def test_openai_clients_raise_permission_denied(service: Service) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=token(scope=None), max_retries=0)
    with pytest.raises(openai.PermissionDeniedError) as refused:
        client.audio.speech.create(model="tts-1", voice="joe", input="Hello.")
    assert refused.value.code == "insufficient_scope"
    assert client.models.list().data
