"""Keys and tokens, checked with PyJWT as the service checks them."""

import json
import stat
from datetime import timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mayafleet import tokens
from mayafleet.errors import FleetError


def test_hosts_accept_a_token_by_the_public_half(tmp_path: Path) -> None:
    private, public = tokens.create_key_pair(tmp_path / "jwt")
    token = tokens.issue(
        tokens.load_key(private), issuer="fleet", audience="tts", subject="me", ttl=timedelta(minutes=5)
    )
    (key,) = jwt.PyJWKSet.from_json(public.read_text()).keys
    assert jwt.get_unverified_header(token)["kid"] == key.key_id
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="tts", issuer="fleet")
    assert (claims["sub"], claims["scope"]) == ("me", "speak")
    assert "tenant" not in claims
    assert claims["exp"] - claims["iat"] == 300
    assert claims["nbf"] == claims["iat"]


def test_private_half_is_private_and_not_in_the_public_one(tmp_path: Path) -> None:
    private, public = tokens.create_key_pair(tmp_path)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert set(json.loads(public.read_text())["keys"][0]) == {"kty", "crv", "x", "kid", "alg", "use"}


def test_kid_is_the_thumbprint_of_rfc_8037(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    # The key of RFC 8037, appendix A.1, and its thumbprint of A.3.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    jwk = tokens.public_jwk(Ed25519PrivateKey.from_private_bytes(seed))
    assert jwk["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_key_that_hosts_trust_is_not_overwritten(tmp_path: Path) -> None:
    private, _ = tokens.create_key_pair(tmp_path)
    before = private.read_bytes()
    with pytest.raises(FleetError, match="exists already"):
        tokens.create_key_pair(tmp_path)
    assert private.read_bytes() == before


def test_other_keys_are_refused_by_name(tmp_path: Path) -> None:
    rsa = tmp_path / "rsa.pem"
    key = generate_private_key(65537, 2048)
    rsa.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "text.pem").write_text("no key")
    for path in (rsa, tmp_path / "text.pem"):
        with pytest.raises(FleetError, match=f"{path.name} is not an unencrypted Ed25519"):
            tokens.load_key(path)
    with pytest.raises(FleetError, match="cannot be read: No such file"):
        tokens.load_key(tmp_path / "absent.pem")
