"""Tokens: who gets in, who does not, and with which code."""

import base64
import hashlib
import hmac
import json
import resource
import secrets
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jwt
import pytest
from conftest import AUDIENCE, ISSUER, SECRET, Service, token
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from maya1_tts import auth as auth_module
from maya1_tts.auth import ANYBODY, SCOPES, Authenticator, Subject
from maya1_tts.config import Settings
from maya1_tts.errors import ApiError, ConfigError

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
PRIVATE = {"RS256": RSA, "EdDSA": ED, "ES256": EC}
OTHER_ED = ed25519.Ed25519PrivateKey.generate()


def jwk(algorithm: str, private: Any, kid: str | None = None) -> dict[str, Any]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return dict(made) | ({"kid": kid} if kid else {})


def write_jwks(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    return write_jwks(tmp_path / "jwks.json", *(jwk(name, key, f"k-{name}") for name, key in PRIVATE.items()))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def authenticator(**files: Path | None) -> Authenticator:
    return Authenticator(Settings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, **files))


def code(auth: Authenticator, header: str | None) -> str | None:
    """The error code, or None for a token that is let in."""
    try:
        auth.check(header)
    except ApiError as error:
        refusal = error
    else:
        return None
    assert refusal.status == 401
    assert refusal.headers["WWW-Authenticate"].startswith("Bearer")
    return refusal.code


def unsigned(header: dict[str, Any], signature: bytes = b"") -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"exp": time.time() + 600, "iss": ISSUER, "aud": AUDIENCE, "sub": "tests"}
    return ".".join([part(json.dumps(header).encode()), part(json.dumps(claims).encode()), part(signature)])


def tampered() -> str:
    head, body, signature = token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "admin"}).encode()).rstrip(b"=").decode()
    return f"{head}.{forged}.{signature}"


def test_shared_secret(secret: Path) -> None:
    auth = authenticator(jwt_secret_file=secret)
    now = time.time()
    expected = {
        f"Bearer {token()}": None,
        f"bearer {token()}": None,
        f"Bearer {token(aud=['other', AUDIENCE])}": None,
        f"Bearer {token(exp=now - 3)}": None,  # within the leeway
        f"Bearer {token(exp=now - 60)}": "token_expired",
        f"Bearer {token(exp=None)}": "invalid_token",
        f"Bearer {token(exp='soon')}": "invalid_token",
        f"Bearer {token(sub=None)}": "invalid_token",
        f"Bearer {token(sub='')}": "invalid_token",
        f"Bearer {token(sub=7)}": "invalid_token",
        f"Bearer {token(sub='s' * 255)}": None,
        f"Bearer {token(sub='s' * 256)}": "invalid_token",
        f"Bearer {token(tenant='')}": "invalid_token",
        f"Bearer {token(tenant=['acme'])}": "invalid_token",
        f"Bearer {token(scope=7)}": "invalid_token",
        f"Bearer {token(scope=['speak', 7])}": "invalid_token",
        f"Bearer {token(scope=None)}": None,
        f"Bearer {token(budget_chars=500, budget_seconds=0.5)}": None,
        f"Bearer {token(budget_chars=0)}": "invalid_token",
        f"Bearer {token(budget_seconds='many')}": "invalid_token",
        f"Bearer {token(budget_seconds=True)}": "invalid_token",
        f"Bearer {token(nbf=now + 60)}": "token_not_yet_valid",
        f"Bearer {token(aud='other')}": "invalid_audience",
        f"Bearer {token(aud=None)}": "invalid_audience",
        f"Bearer {token(iss='https://other')}": "invalid_issuer",
        f"Bearer {token(iss=None)}": "invalid_issuer",
        f"Bearer {token(b'another secret of more than 32 bytes')}": "invalid_signature",
        f"Bearer {tampered()}": "invalid_signature",
        f"Bearer {unsigned({'alg': 'none'})}": "invalid_algorithm",
        f"Bearer {unsigned({'alg': 'None'})}": "invalid_algorithm",
        f"Bearer {unsigned({'alg': ['HS256']})}": "invalid_algorithm",
        f"Bearer {unsigned({'alg': 'HS256'})}": "invalid_signature",
        f"Bearer {token(algorithm='HS512', key=SECRET * 2)}": "invalid_algorithm",
        f"Bearer {token(RSA, 'RS256')}": "invalid_algorithm",
        f"Bearer {token(ED, 'EdDSA')}": "invalid_algorithm",
        "Bearer not.a.token": "invalid_token",
        "Bearer é": "invalid_token",
        "Bearer ": "missing_token",
        "Basic dXNlcjpwYXNz": "missing_token",
        "": "missing_token",
    }
    assert {header: code(auth, header) for header in expected} == expected
    assert code(auth, None) == "missing_token"


def test_who_asks_for_whom_and_what_is_allowed(secret: Path) -> None:
    auth = authenticator(jwt_secret_file=secret)
    for scope, expected in (
        ("speak jobs", {"speak", "jobs"}),
        (["speak", "jobs"], {"speak", "jobs"}),
        ("openid speaker  admin ", {"admin"}),
        ("", set()),
        (None, set()),
    ):
        made = token(sub="me", scope=scope)
        assert auth.check(f"Bearer {made}") == Subject("me", "me", frozenset(expected)), scope
    assert auth.check(f"Bearer {token(sub='me', tenant='acme')}").tenant == "acme"
    assert auth.check(f"Bearer {token(budget_chars=500)}").budget_chars == 500
    assert ANYBODY.scopes == SCOPES


def test_public_keys(jwks: Path) -> None:
    auth = authenticator(jwks_file=jwks)
    for algorithm, private in PRIVATE.items():
        named = token(private, algorithm, headers={"kid": f"k-{algorithm}"})
        assert code(auth, f"Bearer {named}") is None, algorithm
        assert code(auth, f"Bearer {token(private, algorithm)}") is None, algorithm
        unknown = token(private, algorithm, headers={"kid": "unknown"})
        assert code(auth, f"Bearer {unknown}") == "invalid_signature"
        assert code(auth, f"Bearer {token(private, algorithm, exp=1)}") == "token_expired"
    assert code(auth, f"Bearer {token(OTHER_ED, 'EdDSA')}") == "invalid_signature"
    assert code(auth, f"Bearer {token()}") == "invalid_algorithm"


def test_a_public_key_is_never_taken_for_a_secret(jwks: Path, secret: Path) -> None:
    pem = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    unsigned_token = unsigned({"alg": "HS256", "kid": "k-RS256"}).rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.digest(pem, unsigned_token.encode(), hashlib.sha256)).rstrip(
        b"="
    )
    forged = f"{unsigned_token}.{signature.decode()}"
    assert code(authenticator(jwks_file=jwks), f"Bearer {forged}") == "invalid_algorithm"
    assert (
        code(authenticator(jwks_file=jwks, jwt_secret_file=secret), f"Bearer {forged}") == "invalid_signature"
    )


def test_what_a_token_says_of_its_key_leads_nowhere(jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `kid` is a name to look up, and keys that a token brings or points to are not keys."""
    auth = authenticator(jwks_file=jwks)
    reached: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *address, **_: reached.append(address))
    for header in (
        {"kid": "../../../../dev/null"},
        {"kid": "k-EdDSA' OR '1'='1"},
        {"kid": "k-EdDSA\x00"},
        {"jku": "https://attacker.example/jwks.json"},
        {"x5u": "https://attacker.example/certificate.pem"},
        {"jwk": jwk("EdDSA", OTHER_ED, "k-EdDSA"), "kid": "k-EdDSA"},
        {"x5c": ["MIIB"]},
    ):
        forged = token(OTHER_ED, "EdDSA", headers=header)
        assert code(auth, f"Bearer {forged}") == "invalid_signature", header
    critical = token(ED, "EdDSA", headers={"kid": "k-EdDSA", "crit": ["b64"], "b64": False})
    assert code(auth, f"Bearer {critical}") == "invalid_token"
    assert code(auth, f"Bearer {'a' * 10_000_000}") == "invalid_token"
    assert code(auth, f"Bearer {'.'.join(['e30'] * 100_000)}") == "invalid_token"
    assert not reached


def test_both_kinds_of_key_together(jwks: Path, secret: Path) -> None:
    auth = authenticator(jwks_file=jwks, jwt_secret_file=secret)
    assert code(auth, f"Bearer {token()}") is None
    assert code(auth, f"Bearer {token(ED, 'EdDSA')}") is None


def test_changed_files_are_read_again_and_broken_ones_are_not(tmp_path: Path, jwks: Path) -> None:
    auth = authenticator(jwks_file=jwks)
    new = f"Bearer {token(OTHER_ED, 'EdDSA')}"
    assert code(auth, new) == "invalid_signature"
    write_jwks(tmp_path / "new.json", jwk("EdDSA", OTHER_ED)).replace(jwks)
    assert code(auth, new) is None
    jwks.write_text("broken")
    assert code(auth, new) is None
    jwks.unlink()
    assert code(auth, new) is None


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was really checked: a spy on PyJWT, which still does its work."""
    seen: list[str] = []
    real = jwt.decode

    def decode(token: str, *arguments: Any, **options: Any) -> Any:
        seen.append(token)
        return real(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", decode)
    return seen


def test_a_valid_token_is_verified_once(jwks: Path, verified: list[str]) -> None:
    auth = authenticator(jwks_file=jwks)
    good, bad = token(RSA, "RS256", sub="me"), token(OTHER_ED, "EdDSA")
    assert {auth.check(f"Bearer {good}").id for _ in range(3)} == {"me"}
    assert [code(auth, f"Bearer {bad}") for _ in range(2)] == ["invalid_signature"] * 2
    assert (verified.count(good), verified.count(bad)) == (1, 2)
    assert code(auth, f"Bearer {good[:-8]}AAAAAAAA") == "invalid_signature"


def test_a_rotated_key_ends_remembered_tokens(tmp_path: Path, jwks: Path) -> None:
    auth = authenticator(jwks_file=jwks)
    old = f"Bearer {token(ED, 'EdDSA')}"
    assert [code(auth, old), code(auth, old)] == [None, None]
    write_jwks(tmp_path / "new.json", jwk("EdDSA", OTHER_ED)).replace(jwks)
    assert code(auth, old) == "invalid_signature"


def test_an_old_key_counts_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    old = jwk("EdDSA", ED, "old") | {"exp": int(now) + 60}
    auth = authenticator(jwks_file=write_jwks(tmp_path / "jwks.json", jwk("EdDSA", OTHER_ED, "new"), old))
    by_old, by_new = (f"Bearer {token(key, 'EdDSA', exp=now + 600)}" for key in (ED, OTHER_ED))
    assert [code(auth, by_old), code(auth, by_new)] == [None, None]
    monkeypatch.setattr(auth_module.time, "time", lambda: now + 61)  # also for a token that is remembered
    assert [code(auth, by_old), code(auth, by_new)] == ["invalid_signature", None]


def test_a_remembered_token_expires(
    secret: Path, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = authenticator(jwt_secret_file=secret)
    now = time.time()
    made = token(exp=now + 300)
    assert code(auth, f"Bearer {made}") is None
    monkeypatch.setattr(auth_module.time, "time", lambda: now + 301)
    code(auth, f"Bearer {made}")
    assert verified == [made, made]


def test_the_longest_unused_token_is_forgotten_first(
    secret: Path, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_module, "MAX_REMEMBERED", 2)
    auth = authenticator(jwt_secret_file=secret)
    a, b, c = (token(sub=name) for name in "abc")
    for made in (a, b, a, c, a, b):
        auth.check(f"Bearer {made}")
    assert verified == [a, b, c, b]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("nonsense", "is not a JWKS file"),
        ("[]", "is not a JWKS file"),
        ('{"keys": []}', "holds no keys"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "allowed: public RSA"),
        ('{"keys": [{"kty": "EC", "crv": "P-521"}]}', "allowed: public RSA"),
        (json.dumps({"keys": [jwk("RS256", RSA) | {"alg": "HS256"}]}), "allowed: public RSA"),
        (json.dumps({"keys": [jwk("RS256", RSA) | {"exp": "tomorrow"}]}), "is not a JWKS file"),
    ],
)
def test_useless_jwks_files_stop_the_start(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        authenticator(jwks_file=path)


def test_over_http(service: Service) -> None:
    for path in ("/v1/models", "/v1/models/tts-1", "/v1/audio/voices"):
        answer = service.http.get(path, headers={"Authorization": f"Bearer {token(exp=1)}"})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "token_expired"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert service.http.get(path).status_code == 200
    answer = service.http.post("/v1/audio/speech", headers={"Authorization": ""}, content=b"{")
    assert answer.json()["error"]["code"] == "missing_token"  # before the body is even looked at
    assert service.metric("auth_failures_total", code="token_expired") >= 3


def test_ten_thousand_bad_tokens_do_no_harm(service: Service) -> None:
    def memory() -> int:
        resident_pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
        return int(resident_pages) * resource.getpagesize()

    head, body, _ = token().split(".")
    statuses: Counter[int] = Counter()
    for number in range(10_000):
        if number == 1000:  # what the first ones make grow, such as pools, is there
            before = memory()
        forged = f"{head}.{body}.{secrets.token_urlsafe(32)}"
        answer = service.http.get("/v1/models", headers={"Authorization": f"Bearer {forged}"})
        statuses[answer.status_code] += 1
    assert statuses == {401: 10_000}
    assert memory() - before < 10e6
    assert service.speak().status_code == 200
