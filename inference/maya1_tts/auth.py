"""Bearer tokens: HS256 with a shared secret, RS256, ES256 and EdDSA with public keys from a JWKS file.

What a token allows is its `scope`, as in RFC 8693 section 4.2 and RFC 9068 section 2.2.3.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jwt

from maya1_tts.config import PREFIX, Settings, read_secret
from maya1_tts.errors import ApiError, ConfigError, shown

Scope = Literal["speak", "jobs", "admin"]
SCOPES: frozenset[Scope] = frozenset({"speak", "jobs", "admin"})
LEEWAY_SECONDS = 10
MAX_REMEMBERED = 4096  # tokens; about 1 MB
MAX_NAME_LENGTH = 255  # of `sub` and `tenant`; OpenID Connect Core 1.0 section 2 bounds `sub` alike
# The key decides the algorithm, never the token: this is what makes algorithm confusion impossible.
_ALGORITHM_OF = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """Who asks (`sub`), for whom (`tenant`, by default who asks), what is allowed, how much in a minute."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    budget_chars: float = math.inf
    budget_seconds: float = math.inf

    def need(self, scope: Scope) -> None:
        """Raises ApiError 403 unless the token has the scope."""
        if scope not in self.scopes:
            challenge = f'Bearer realm="maya1-tts", error="insufficient_scope", scope="{scope}"'
            raise ApiError(
                403,
                "insufficient_scope",
                f"This needs a token with the scope {scope!r}; this one has "
                f"{', '.join(map(repr, sorted(self.scopes))) or 'none'}.",
                headers={"WWW-Authenticate": challenge},
            )


ANYBODY = Subject("anybody", "anybody", SCOPES)  # where no tokens are checked


@dataclass(frozen=True)
class Key:
    id: str | None
    algorithm: str
    material: Any  # bytes for HS256, a public key object of `cryptography` for the others
    until: float = math.inf  # Unix time from which it lets nobody in


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _load_secret(path: Path) -> list[Key]:
    secret = read_secret("JWT_SECRET_FILE", path)
    if len(secret) < 32:
        raise ConfigError(
            f"{PREFIX}JWT_SECRET_FILE={shown(str(path))} holds {len(secret)} bytes; allowed: 32 or more."
        )
    return [Key(None, "HS256", secret)]


def _load_jwks(path: Path) -> list[Key]:
    where = f"{PREFIX}JWKS_FILE={shown(str(path))}"
    try:
        entries = json.loads(read_secret("JWKS_FILE", path))["keys"]
        keys = []
        for entry in entries:
            algorithm = _ALGORITHM_OF.get((entry["kty"], None if entry["kty"] == "RSA" else entry.get("crv")))
            if algorithm is None or entry.get("alg", algorithm) != algorithm or "d" in entry:
                raise ConfigError(
                    f"{where}: key {shown(entry.get('kid'))} has kty {shown(entry['kty'])}, "
                    f"crv {shown(entry.get('crv'))}, alg {shown(entry.get('alg'))}; "
                    "allowed: public RSA (RS256), P-256 (ES256) and Ed25519 (EdDSA) keys."
                )
            until = float(entry.get("exp", math.inf))
            keys.append(Key(entry.get("kid"), algorithm, jwt.PyJWK(entry, algorithm).key, until))
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise ConfigError(f"{where} is not a JWKS file: {type(error).__name__}: {error}.") from None
    if not keys:
        raise ConfigError(f"{where} holds no keys; allowed: at least one public key.")
    return keys


def _subject(claims: dict[str, Any]) -> Subject:
    """Raises ApiError 401 when a claim has another form than it must have."""
    scope = claims.get("scope", "")
    listed = scope.split() if isinstance(scope, str) else scope
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise _refuse(
            "invalid_token",
            f"The token's 'scope' is {shown(scope)}; allowed: names with spaces between them, or a list.",
        )
    names = (claims["sub"], claims.get("tenant", claims["sub"]))
    for claim, name in zip(("sub", "tenant"), names, strict=True):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH:
            raise _refuse(
                "invalid_token",
                f"The token's {claim!r} is {shown(name)}; allowed: 1 to {MAX_NAME_LENGTH} characters.",
            )
    budgets = {claim: claims.get(claim, math.inf) for claim in ("budget_chars", "budget_seconds")}
    for claim, budget in budgets.items():
        if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget > 0:
            raise _refuse(
                "invalid_token", f"The token's {claim!r} is {shown(budget)}; allowed: a number above 0."
            )
    return Subject(*names, SCOPES.intersection(listed), **budgets)


def _refuse(code: str, message: str) -> ApiError:
    error = "invalid_request" if code == "missing_token" else "invalid_token"
    challenge = 'Bearer realm="maya1-tts"' + ("" if code == "missing_token" else f', error="{error}"')
    return ApiError(401, code, message, headers={"WWW-Authenticate": challenge})


class Authenticator:
    """Checks `Authorization` headers. Key files are read again when they change on disk.

    Checking a public-key signature costs more than a cached answer, so valid tokens are remembered, by hash,
    until they expire or the keys change. Not for use by several threads.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when a key file cannot be used."""
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._files = [
            (path, load)
            for path, load in ((settings.jwt_secret_file, _load_secret), (settings.jwks_file, _load_jwks))
            if path
        ]
        self._seen = self._stamp()
        self._keys = self._load()
        self._remembered: OrderedDict[bytes, tuple[Subject, float]] = (
            OrderedDict()
        )  # least recently used first

    def check(self, header: str | None) -> Subject:
        """Whose token it is. Raises ApiError 401 with a stable code unless it is valid."""
        self._reload_if_changed()
        scheme, _, token = (header or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _refuse("missing_token", "This route needs the header 'Authorization: Bearer <token>'.")
        digest = hashlib.sha256(token.encode()).digest()
        subject, until = self._remembered.get(digest, (None, 0.0))
        if subject and time.time() < until:
            self._remembered.move_to_end(digest)
            return subject
        claims, key = self._verified(token)
        subject = _subject(claims)
        self._remembered[digest] = subject, min(claims["exp"], key.until)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return subject

    def _verified(self, token: str) -> tuple[dict[str, Any], Key]:
        """The claims of a valid token, and the key that it is signed with."""
        try:
            return self._decode(token)
        except jwt.ExpiredSignatureError:
            raise _refuse("token_expired", "The token's 'exp' lies in the past.") from None
        except jwt.ImmatureSignatureError:
            raise _refuse("token_not_yet_valid", "The token's 'nbf' or 'iat' lies in the future.") from None
        except jwt.InvalidAudienceError:
            raise _refuse("invalid_audience", f"The token's 'aud' must be {shown(self._audience)}.") from None
        except jwt.InvalidIssuerError:
            raise _refuse("invalid_issuer", f"The token's 'iss' must be {shown(self._issuer)}.") from None
        except jwt.MissingRequiredClaimError as error:
            code = {"aud": "invalid_audience", "iss": "invalid_issuer"}.get(error.claim, "invalid_token")
            raise _refuse(code, f"The token has no {error.claim!r}.") from None
        except jwt.InvalidSignatureError:
            raise _refuse("invalid_signature", "The token's signature does not fit any known key.") from None
        except jwt.InvalidAlgorithmError as error:
            raise _refuse("invalid_algorithm", str(error)) from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refuse("invalid_token", "The token cannot be read as a JWT.") from None

    def _decode(self, token: str) -> tuple[dict[str, Any], Key]:
        header = jwt.get_unverified_header(token)
        allowed = sorted({key.algorithm for key in self._keys})
        algorithm = header.get("alg")
        if algorithm not in allowed:
            raise jwt.InvalidAlgorithmError(
                f"The token's 'alg' is {shown(algorithm)}; allowed: {', '.join(allowed)}."
            )
        keys = [key for key in self._keys if key.algorithm == algorithm and time.time() < key.until]
        named = [key for key in keys if key.id is not None and key.id == header.get("kid")]
        failure: jwt.PyJWTError = jwt.InvalidSignatureError()
        for key in named or [key for key in keys if key.id is None or "kid" not in header]:
            try:
                claims = jwt.decode(
                    token,
                    key.material,
                    algorithms=[key.algorithm],
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=LEEWAY_SECONDS,
                    options={
                        "require": [
                            "exp",
                            "sub",
                            *(["aud"] if self._audience else []),
                            *(["iss"] if self._issuer else []),
                        ],
                        "verify_sub": False,  # `_subject` does, and says more
                        "verify_aud": self._audience is not None,
                        "verify_iss": self._issuer is not None,
                    },
                )
                return claims, key
            except jwt.InvalidSignatureError as error:
                failure = error
        raise failure

    def _load(self) -> list[Key]:
        return [key for path, load in self._files for key in load(path)]

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path, _ in self._files]

    def _reload_if_changed(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = self._load()
            self._remembered.clear()
            log.info("read the token keys again")
        except ConfigError as error:
            log.error("kept the old token keys: %s", error)
