"""Client certificates, checked with OpenSSL as NGINX checks them."""

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from mayafleet import certs
from mayafleet.certs import Authority, State
from mayafleet.errors import FleetError
from mayafleet.tokens import Scope


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "clients")


def verify(authority: Authority, certificate: Path) -> subprocess.CompletedProcess[str]:
    """With the list of revoked certificates, for the whole chain, as `ssl_crl` has it."""
    return subprocess.run(
        ["openssl", "verify", "-purpose", "sslclient", "-crl_check_all",
         "-CAfile", authority.folder / "ca.pem", "-CRLfile", authority.folder / "crl.pem", certificate],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_openssl_accepts_what_was_issued_and_refuses_what_was_revoked(authority: Authority) -> None:
    alice, bob = (authority.issue(name, days=30) for name in ("alice", "bob"))
    assert verify(authority, alice).returncode == 0
    assert verify(authority, bob).returncode == 0
    (revoked,) = authority.revoke("alice")
    assert (revoked.name, revoked.state) == ("alice", State.REVOKED)
    assert "certificate revoked" in verify(authority, alice).stderr
    assert verify(authority, bob).returncode == 0


def test_a_certificate_is_for_clients_alone_and_signs_nothing(authority: Authority) -> None:
    path = authority.issue("alice", days=30)
    checked = subprocess.run(
        ["openssl", "verify", "-purpose", "sslserver", "-CAfile", authority.folder / "ca.pem", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "unsuitable certificate purpose" in checked.stderr
    constraints = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert not constraints.value.ca


def test_keys_are_private_and_the_clients_file_is_a_pair(authority: Authority) -> None:
    path = authority.issue("alice", days=30)
    for private in (path, authority.folder / "ca.key"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    # curl and requests take the one file.
    of_certificate = subprocess.run(
        ["openssl", "x509", "-in", path, "-noout", "-pubkey"], capture_output=True, check=True
    )
    of_key = subprocess.run(["openssl", "pkey", "-in", path, "-pubout"], capture_output=True, check=True)
    assert of_certificate.stdout == of_key.stdout
    assert (
        "PRIVATE"
        not in (authority.folder / "issued").joinpath(f"{authority.certificates()[0].serial}.pem").read_text()
    )


def test_the_authoritys_key_may_be_encrypted(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password, key = tmp_path / "password", authority.folder / "ca.key"
    password.write_text("correct horse battery staple")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    subprocess.run(["ansible-vault", "encrypt", key], check=True, capture_output=True)
    alice = authority.issue("alice", days=30)
    assert verify(authority, alice).returncode == 0
    authority.revoke("alice")
    assert "certificate revoked" in verify(authority, alice).stderr
    assert key.read_bytes().startswith(b"$ANSIBLE_VAULT")

    password.write_text("another")
    with pytest.raises(FleetError, match=r"ca\.key cannot be decrypted"):
        authority.issue("bob", days=30)
    assert [one.name for one in authority.certificates()] == ["alice"]


def test_the_subject_says_who_for_whom_and_what(authority: Authority) -> None:
    authority.issue("alice", days=30, scopes=[Scope.SPEAK, Scope.JOBS], tenant="acme")
    authority.issue("bob", days=30)
    alice, bob = authority.certificates()
    assert (alice.tenant, set(alice.scopes)) == ("acme", {"speak", "jobs"})
    assert (bob.tenant, bob.scopes) == ("bob", ("speak",))


def test_what_was_revoked_before_stays_revoked(authority: Authority) -> None:
    for name in ("alice", "bob"):
        authority.issue(name, days=30)
        authority.revoke(name)
    assert {one.state for one in Authority(authority.folder).certificates()} == {State.REVOKED}
    again = authority.issue("alice", days=30)
    assert verify(authority, again).returncode == 0


def test_one_of_two_is_revoked_by_its_number(authority: Authority) -> None:
    old = authority.issue("alice", days=30)
    (before,) = authority.certificates()
    kept = old.read_bytes()
    new = authority.issue("alice", days=60, renew=True)
    authority.revoke(before.serial)
    old = old.with_name("old.pem")
    old.write_bytes(kept)
    assert verify(authority, new).returncode == 0
    assert "certificate revoked" in verify(authority, old).stderr
    assert {one.state for one in authority.certificates() if one.serial == before.serial} == {State.REVOKED}


def test_the_list_is_valid_for_a_year_and_grows_in_number(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = authority.crl_expires - datetime.now(UTC)
    assert timedelta(days=certs.CRL_DAYS - 1) < left <= timedelta(days=certs.CRL_DAYS)

    def number() -> int:
        crl = x509.load_pem_x509_crl((authority.folder / "crl.pem").read_bytes())
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    before = number()
    authority.issue("alice", days=30)
    authority.revoke("alice")
    assert number() > before


@pytest.mark.parametrize("name", ["", "../alice", "a b", "-alice", "a" * 65, "alice\n", "ålice", "a/CN=root"])
def test_bad_names_are_refused_and_nothing_is_written(authority: Authority, name: str) -> None:
    with pytest.raises(FleetError, match="not fit for a certificate"):
        authority.issue(name, days=30)
    with pytest.raises(FleetError, match="not fit for a certificate"):
        authority.issue("alice", days=30, tenant=name)
    assert {path.name for path in authority.folder.iterdir()} == {"ca.key", "ca.pem", "crl.pem"}


def test_mistakes_are_told(authority: Authority) -> None:
    with pytest.raises(FleetError, match="No certificate was issued for 'bob'"):
        authority.revoke("bob")
    authority.issue("alice", days=30)
    with pytest.raises(FleetError, match="'alice' has a certificate that is valid until"):
        authority.issue("alice", days=30)
    authority.revoke("alice")
    with pytest.raises(FleetError, match="'alice' was revoked already"):
        authority.revoke("alice")
    with pytest.raises(FleetError, match="holds an authority already"):
        Authority.create(authority.folder)


def test_an_expired_certificate_needs_no_revoking(authority: Authority) -> None:
    authority.issue("alice", days=0)
    assert [one.state for one in authority.certificates()] == [State.EXPIRED]
    with pytest.raises(FleetError, match="has expired"):
        authority.revoke("alice")
    authority.issue("alice", days=30)


def test_a_folder_without_an_authority_and_one_with_another_key(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(FleetError, match=r"holds no authority of clients: ca.pem is missing"):
        Authority(tmp_path)
    other = Authority.create(tmp_path / "other")
    (other.folder / "ca.key").replace(authority.folder / "ca.key")
    with pytest.raises(FleetError, match=r"is not the key of .*ca.pem"):
        authority.issue("alice", days=30)
