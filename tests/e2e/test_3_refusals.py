"""Who may not speak, and what cannot be spoken: each a 4xx with a stable code, never a 500."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.lab import SENTENCE, Client, Lab


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def signed_with_hmac(claims: dict[str, Any], key_id: str, secret: bytes) -> str:
    """An HS256 token under any secret; PyJWT refuses to make one under a public key."""
    header = {"alg": "HS256", "typ": "JWT", "kid": key_id}
    body = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{body}.{encoded(hmac.digest(secret, body.encode(), 'sha256'))}"


def tampered(token: str) -> str:
    """The same signature under other claims."""
    header, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False}) | {"sub": "somebody else"}
    return f"{header}.{encoded(json.dumps(claims).encode())}.{signature}"


def test_no_token(client: Client, lab: Lab) -> None:
    answer = Client(lab, None).speak()
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_token")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exp": 1_000_000_000}, "token_expired"),
        ({"nbf": 4_000_000_000, "exp": 4_100_000_000}, "token_not_yet_valid"),
        ({"aud": "another-service"}, "invalid_audience"),
        ({"iss": "another-issuer"}, "invalid_issuer"),
    ],
)
def test_wrong_claims(
    client: Client, lab: Lab, claims: dict[str, Any], key_id: str, change: dict[str, Any], code: str
) -> None:
    token = jwt.encode(claims | change, lab.signing_key, algorithm="EdDSA", headers={"kid": key_id})
    answer = Client(lab, token).speak()
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)


def test_a_token_without_the_scope(client: Client, lab: Lab, claims: dict[str, Any], key_id: str) -> None:
    token = jwt.encode(
        claims | {"scope": "jobs"}, lab.signing_key, algorithm="EdDSA", headers={"kid": key_id}
    )
    answer = Client(lab, token).speak()
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert 'scope="speak"' in answer.headers["WWW-Authenticate"]


def test_wrong_signatures(client: Client, lab: Lab, token: str, claims: dict[str, Any], key_id: str) -> None:
    stranger = jwt.encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": key_id})
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": key_id})
    # The public key is public: a token that uses it as a shared secret must not pass.
    confused = signed_with_hmac(claims, key_id, (lab.state / "jwt" / "jwks.json").read_bytes())
    for bad, code in (
        (tampered(token), "invalid_signature"),
        (stranger, "invalid_signature"),
        (unsigned, "invalid_algorithm"),
        (confused, "invalid_algorithm"),
        ("not.a.token", "invalid_token"),
    ):
        answer = Client(lab, bad).speak()
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), bad


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "😀🎉"}, "input"),
        ({"input": "a" * 20_000}, "input"),
        ({"input": "nul\x00byte"}, "input"),
        ({"input": 7}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"response_format": "wma"}, "response_format"),
        ({"speed": 9}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"model": "unknown"}, "model"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_bad_input_names_the_field(client: Client, change: dict[str, Any], param: str) -> None:
    answer = client.speak(**change) if "input" not in change else client.speak(change["input"])
    error = answer.json()["error"]
    assert 400 <= answer.status_code < 500
    assert error["param"] == param
    assert param in error["message"]
    assert error["code"]


@pytest.mark.parametrize("body", [b"{not json", b"", b"[]", b'"text"', b"\xff\xfe", b'{"input": "\\ud800"}'])
def test_bad_bodies(client: Client, body: bytes) -> None:
    answer = client.request(
        "POST", "/v1/audio/speech", data=body, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"]


def test_too_large_a_body(client: Client) -> None:
    answer = client.speak("a" * 100_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_too_many_requests(client: Client, lab: Lab, token: str) -> None:
    def ask(_: int) -> requests.Response:
        session = requests.Session()
        session.trust_env = False
        headers = {"Authorization": f"Bearer {token}"}
        return session.get(f"{lab.url}/v1/models", headers=headers, verify=str(lab.authority), timeout=30)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_old_tls_is_refused_and_http_redirects(client: Client, lab: Lab) -> None:
    host = lab.url.removeprefix("https://")
    for version, accepted in (("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)):
        command = [
            "openssl",
            "s_client",
            "-connect",
            f"{host}:443",
            f"-{version}",
            "-cipher",
            "ALL:@SECLEVEL=0",
        ]
        if version == "tls1_3":
            command = command[:5]
        done = subprocess.run(
            [*command, "-CAfile", str(lab.authority)], input=b"", capture_output=True, check=False
        )
        assert (done.returncode == 0) is accepted, f"{version}: {done.stdout.decode()}{done.stderr.decode()}"
    redirect = requests.get(f"http://{host}/v1/models", allow_redirects=False, timeout=30)
    assert (redirect.status_code, redirect.headers["Location"]) == (308, f"{lab.url}/v1/models")


def test_nobody_outside_reads_metrics(client: Client) -> None:
    for path in ("/metrics", "/metrics/node", "/metrics/gpu"):
        assert client.request("GET", path).status_code == 403


def test_the_sentence_is_still_spoken_after_all_that(client: Client) -> None:
    assert client.speak(SENTENCE).status_code == 200
