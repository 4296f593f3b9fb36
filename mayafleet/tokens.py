"""Keys and tokens by which an operator proves to the speech service who asks."""

from __future__ import annotations

import json
import math
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mayafleet import files
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
    with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(pem_of(key))
    public.write_text(json.dumps({"keys": [public_jwk(key)]}, indent=2) + "\n")
    return private, public


def pem_of(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def publish(
    path: Path,
    key: Ed25519PrivateKey,
    retiring: Ed25519PrivateKey | None = None,
    until: datetime | None = None,
) -> None:
    """Put the public half of a key first in the file that hosts check signatures with.

    retiring: the key before, which goes on being good until then. Where that is now, all older ones are left
    out too; else those whose end has come. Keys without an end stay.
    """
    now = datetime.now(UTC)
    limit = now if until is None or until > now else datetime.max.replace(tzinfo=UTC)
    try:
        present: list[dict[str, Any]] = json.loads(path.read_text())["keys"] if path.exists() else []
        entries = [one for one in present if one.get("exp", math.inf) > limit.timestamp()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FleetError(
            f"{path} holds no public keys that can be read: {type(error).__name__}.",
            "Put it back from a backup, or move it away.",
            ExitCode.USAGE,
        ) from None
    new = public_jwk(key)
    old: list[dict[str, Any]] = [public_jwk(retiring)] if retiring else []
    replaced = {entry["kid"] for entry in (new, *old)}
    keys = [new, *(one for one in entries if one.get("kid") not in replaced)]
    if until and until > now:
        keys += [one | {"exp": int(until.timestamp())} for one in old]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(path, (json.dumps({"keys": keys}, indent=2) + "\n").encode())


def issue(
    key: Ed25519PrivateKey,
    *,
    issuer: str,
    audience: str,
    subject: str,
    ttl: timedelta = timedelta(minutes=5),
    scopes: Iterable[Scope] = (Scope.SPEAK,),
    tenant: str | None = None,
) -> str:
    """A signed token that says who asks, on whose behalf, of whom, for what, and until when."""
    now = datetime.now(UTC)
    claims = {"iss": issuer, "aud": audience, "sub": subject, "iat": now, "nbf": now, "exp": now + ttl}
    claims |= {"scope": " ".join(scopes)} | ({"tenant": tenant} if tenant else {})
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": public_jwk(key)["kid"]})


def load_key(path: Path) -> Ed25519PrivateKey:
    """The signing key in a file. Raises FleetError where it cannot be used."""
    try:
        return parse_key(path.read_bytes(), str(path))
    except OSError as error:
        raise FleetError(
            f"The signing key {path} cannot be read: {error.strerror}.",
            "Make one with `mayafleet jwt init DIR`.",
            ExitCode.USAGE,
        ) from None


def parse_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """The signing key in PEM. Raises FleetError that names where it came from."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FleetError(
            f"{where} is not an unencrypted Ed25519 private key in PEM.",
            "Make one with `mayafleet secrets init`, or `mayafleet jwt init DIR`.",
            ExitCode.USAGE,
        )
    return key


def public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    """The public half as a JSON Web Key, named by its RFC 7638 thumbprint."""
    x = _base64url(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    required = {"crv": "Ed25519", "kty": "OKP", "x": x}
    thumbprint = sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "alg": "EdDSA", "use": "sig", "kid": _base64url(thumbprint)}


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
