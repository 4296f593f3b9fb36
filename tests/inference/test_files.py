"""GET /v1/audio/speech: whole files by address, for browsers and for caches in front, such as a CDN."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import AUDIENCE, ISSUER, Service, free_port, program, token, wait_for

ADDRESS = "/v1/audio/speech"
FIELDS = {"model": "tts-1", "input": "Spoken for everybody.", "voice": "joe", "response_format": "wav"}


def get(service: Service, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    return service.http.get(ADDRESS, params=FIELDS | fields, headers=headers)


def test_it_is_what_post_gives(service: Service) -> None:
    posted = service.speak(FIELDS["input"], response_format="wav", speed=1.25)
    fetched = get(service, speed="1.25")
    assert fetched.content == posted.content
    assert fetched.headers["content-type"] == "audio/wav"
    assert fetched.headers["x-cache"] == "hit"
    assert fetched.headers["cache-control"] == "private, max-age=86400"
    assert "etag" not in posted.headers


def test_who_has_it_gets_it_no_second_time(service: Service) -> None:
    etag = get(service).headers["etag"]
    spoken = service.metric("cache_requests_total", outcome="hit")
    for known in (etag, f'"other", {etag}', f"W/{etag}"):
        again = get(service, {"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert service.metric("cache_requests_total", outcome="hit") == spoken
    assert get(service, {"If-None-Match": '"other"'}).status_code == 200
    others = [{"input": "Else."}, {"speed": "1.5"}, {"response_format": "mp3"}, {"sample_rate": "8000"}]
    assert etag not in [get(service, **other).headers["etag"] for other in others]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speed": "fast"}, "speed"),
        ({"speed": "NaN"}, "speed"),
        ({"speed": "true"}, "speed"),
        ({"sample_rate": "24001"}, "sample_rate"),
        ({"stream": "true"}, "stream"),
        ({"input": ""}, "input"),
        ({"voice": ["joe", "joe"]}, "voice"),
    ],
)
def test_wrong_fields_are_named(service: Service, fields: dict[str, str], param: str) -> None:
    answer = get(service, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "etag" not in answer.headers


def test_without_a_token_there_is_nothing(service: Service) -> None:
    etag = get(service).headers["etag"]
    for headers in ({}, {"If-None-Match": etag}):
        assert httpx.get(f"{service.url}{ADDRESS}", params=FIELDS, headers=headers).status_code == 401


@pytest.fixture
def cached(tmp_path: Path, secret_file: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """NGINX with a cache of its own, as a CDN is, before a service with the settings in the parameter."""
    settings = {"JWT_SECRET_FILE": secret_file, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    service = Service(tmp_path, **settings, **request.param)
    port = free_port()
    (tmp_path / "nginx.conf").write_text(f"""
user root; daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;
events {{}}
http {{
    access_log off;
    proxy_cache_path {tmp_path}/cache keys_zone=speech:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_cache speech;
            proxy_pass {service.url};
            add_header X-Cdn $upstream_cache_status always;
        }}
    }}
}}
""")
    nginx = subprocess.Popen([program("nginx"), "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"])
    try:
        service.wait_until_ready()
        wait_for((tmp_path / "nginx.pid").exists, "nginx writes its pid")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        nginx.terminate()
        nginx.wait()
        service.stop()


def ask_twice(cdn: httpx.Client, **fields: str) -> list[tuple[int, str]]:
    bearer = {"Authorization": f"Bearer {token()}"}
    answers = [cdn.get(ADDRESS, params=FIELDS | fields, headers=bearer) for _ in range(2)]
    return [(answer.status_code, answer.headers["x-cdn"]) for answer in answers]


@pytest.mark.parametrize("cached", [{"SHARED_CACHE_SECONDS": 60}], indirect=True)
def test_a_shared_cache_keeps_it_where_the_operator_says_so(cached: httpx.Client) -> None:
    assert ask_twice(cached) == [(200, "MISS"), (200, "HIT")]
    assert ask_twice(cached, voice="nobody") == [(404, "MISS"), (404, "MISS")]


@pytest.mark.parametrize("cached", [{}], indirect=True)
def test_a_shared_cache_keeps_nothing_otherwise(cached: httpx.Client) -> None:
    assert ask_twice(cached) == [(200, "MISS"), (200, "MISS")]


def test_what_tenants_do_not_share_no_cache_may_share(tmp_path: Path) -> None:
    service = Service(tmp_path, AUTH="none", CACHE_PER_TENANT="true", SHARED_CACHE_SECONDS=60)
    assert service.process.wait() == 2
    assert "MAYA1_TTS_SHARED_CACHE_SECONDS" in service.log
    assert "allowed with CACHE_PER_TENANT: 0" in service.log
