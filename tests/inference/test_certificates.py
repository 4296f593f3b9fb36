"""Client certificates stand for tokens, by the gateway's word and nobody else's.

The subjects are what NGINX writes for certificates of `mayafleet cert issue`; see molecule/gateway_tls.
"""

from pathlib import Path

import pytest
from conftest import AUDIENCE, ISSUER, token
from maya1_tts.api import Service, create_app
from maya1_tts.auth import Subject
from maya1_tts.certificates import Certificates
from maya1_tts.config import Settings
from maya1_tts.errors import ApiError, ConfigError
from starlette.testclient import TestClient, WebSocketDenialResponse

SECRET = "gateway-secret"
ALICE = "CN=alice,OU=jobs,OU=speak,O=acme"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, secret_file: Path) -> Settings:
    path = tmp_path_factory.mktemp("gateway") / "secret"
    path.write_text(f"{SECRET}\n")
    return Settings(
        jwt_secret_file=secret_file, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, gateway_secret_file=path
    )


@pytest.fixture(scope="module")
def client(settings: Settings) -> TestClient:
    """Of a service whose engine is never loaded: who is let in gets 404 or 503, and that is enough here."""
    return TestClient(create_app(Service(settings, lambda *_: pytest.fail("nobody asked for an engine"))))


def status(client: TestClient, path: str = "/v1/audio/jobs/x", **headers: str) -> int:
    return client.get(
        path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    ).status_code


def test_the_subject_says_who_for_whom_and_what(settings: Settings) -> None:
    known = Certificates(settings)
    assert known.check(f"{SECRET} {ALICE}") == Subject("alice", "acme", frozenset({"jobs", "speak"}))
    assert known.check(f"{SECRET} CN=bob") == Subject("bob", "bob", frozenset())
    # As of another authority, with what OpenSSL escapes.
    foreign = known.check(rf"{SECRET} emailAddress=c@x.org,CN=\C3\A5se\, Oslo,OU=speak+OU=other")
    assert foreign == Subject("åse, Oslo", "åse, Oslo", frozenset({"speak"}))


@pytest.mark.parametrize("subject", ["O=acme", "CN=a,CN=b", "nonsense", f"CN={'a' * 256}"])
def test_a_subject_that_names_nobody_is_refused(settings: Settings, subject: str) -> None:
    with pytest.raises(ApiError) as refused:
        Certificates(settings).check(f"{SECRET} {subject}")
    assert (refused.value.status, refused.value.code) == (401, "invalid_certificate")


@pytest.mark.parametrize(
    "header", [ALICE, f"wrong {ALICE}", f" {ALICE}", SECRET, f"{SECRET} ", f"{SECRET}x {ALICE}", "å å"]
)
def test_nobody_but_the_gateway_is_believed(settings: Settings, header: str) -> None:
    assert Certificates(settings).check(header) is None


def test_without_a_secret_certificates_say_nothing(secret_file: Path) -> None:
    known = Certificates(Settings(jwt_secret_file=secret_file))
    assert known.check(f" {ALICE}") is None
    assert known.check(f"None {ALICE}") is None


def test_an_empty_secret_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ConfigError, match="GATEWAY_SECRET_FILE"):
        Certificates(Settings(gateway_secret_file=tmp_path / "secret"))


def test_a_certificate_opens_what_its_scopes_name(client: TestClient) -> None:
    assert status(client) == 401
    assert status(client, x_client_certificate=f"wrong {ALICE}") == 401
    assert status(client, x_client_certificate=f"{SECRET} CN=bob,OU=speak") == 403
    assert status(client, x_client_certificate=f"{SECRET} {ALICE}") not in (401, 403)


def test_a_token_counts_before_the_certificate(client: TestClient) -> None:
    certificate = f"{SECRET} {ALICE}"
    assert status(client, x_client_certificate=certificate, authorization="Bearer nonsense") == 401
    speaks = f"Bearer {token(scope='speak')}"
    assert status(client, x_client_certificate=certificate, authorization=speaks) == 403


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [(f"{SECRET} {ALICE}", 503), (f"{SECRET} CN=bob,OU=jobs", 403), (f"wrong {ALICE}", 401)],
)
def test_a_websocket_opens_alike(client: TestClient, certificate: str, expected: int) -> None:
    headers = {"X-Client-Certificate": certificate}
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/v1/audio/speech/ws", headers=headers),
    ):
        pass
    assert denied.value.status_code == expected
