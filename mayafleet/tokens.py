"""Keys and tokens by which an operator proves to the speech service who asks."""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mayafleet.errors import ExitCode, FleetError


class Scope(StrEnum):
    """What a token allows: see inference/README.md."""

    SPEAK = "speak"
    JOBS = "jobs"
    ADMIN = "admin"


def create_key_pair(folder: Path) -> tuple[Path, Path]:
    """Make folder/private.pem, which signs, and folder/jwks.json, which hosts check signatures with."""
    private, public = folder / "private.pem", folder / "jwks.json"
    for path in (private, public):
        if path.exists():
            raise FleetError(
                f"{path} exists already.",
                "Hosts trust that key: choose another folder, or move the old pair away.",
                ExitCode.USAGE,
            )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_text(json.dumps({"keys": [_public_jwk(key)]}, indent=2) + "\n")
    return private, public


def issue(
    key_file: Path,
    *,
    issuer: str,
    audience: str,
    subject: str,
    ttl: timedelta = timedelta(minutes=5),
    scopes: Iterable[Scope] = (Scope.SPEAK,),
    tenant: str | None = None,
) -> str:
    """A signed token that says who asks, on whose behalf, of whom, for what, and until when."""
    key = _load(key_file)
    now = datetime.now(UTC)
    claims = {"iss": issuer, "aud": audience, "sub": subject, "iat": now, "nbf": now, "exp": now + ttl}
    claims |= {"scope": " ".join(scopes)} | ({"tenant": tenant} if tenant else {})
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": _public_jwk(key)["kid"]})


def _load(key_file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise FleetError(
            f"The signing key {key_file} cannot be read: {error.strerror}.",
            "Make one with `mayafleet jwt init DIR`.",
            ExitCode.USAGE,
        ) from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FleetError(
            f"{key_file} is not an unencrypted Ed25519 private key in PEM.",
            "Make one with `mayafleet jwt init DIR`.",
            ExitCode.USAGE,
        )
    return key


def _public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    """The public half as a JSON Web Key, named by its RFC 7638 thumbprint."""
    x = _base64url(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    required = {"crv": "Ed25519", "kty": "OKP", "x": x}
    thumbprint = sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "alg": "EdDSA", "use": "sig", "kid": _base64url(thumbprint)}


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
