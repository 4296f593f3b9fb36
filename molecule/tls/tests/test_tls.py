"""A certificate that clients can verify, and keys that stay where they were made."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from conftest import Converge
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from testinfra.host import Host

TLS = "/etc/maya1/tls"
VERIFY_UNREVOKED = f"openssl verify -crl_check -CAfile {TLS}/ca.pem -CRLfile {TLS}/ca.crl"


def serial(host: Host) -> str:
    return str(host.check_output(f"openssl x509 -in {TLS}/fullchain.pem -noout -serial"))


def names(host: Host) -> str:
    return str(host.check_output(f"openssl x509 -in {TLS}/fullchain.pem -noout -ext subjectAltName"))


def make_pair(folder: Path, name: str, days: int = 30) -> tuple[str, str]:
    """A self-signed certificate and its key, on this machine."""
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, None)
    )
    encoding = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


def test_clients_can_verify_the_certificate(host: Host, variables: dict[str, Any]) -> None:
    for asked in (
        f"-verify_hostname {variables['inventory_hostname']}",
        f"-verify_ip {variables['lab_address']}",
        f"-verify_ip {variables['lab_address_ipv6']}",
    ):
        host.check_output(
            f"openssl verify -CAfile {TLS}/ca.pem -purpose sslserver {asked} {TLS}/fullchain.pem"
        )
    assert host.run(f"openssl verify -CAfile {TLS}/ca.pem -verify_ip 192.0.2.1 {TLS}/fullchain.pem").failed


def test_key_is_for_root_alone(host: Host) -> None:
    key = host.file(f"{TLS}/privkey.pem")
    assert (key.user, key.group, key.mode) == ("root", "www-data", 0o640)


def test_keys_stay_where_they_were_made(host: Host, lab_state: Path) -> None:
    hosts_key = host.file(f"{TLS}/privkey.pem").content_string
    here = [path.read_text(errors="replace") for path in lab_state.rglob("*") if path.is_file()]
    assert not any(hosts_key in text for text in here)
    line = (lab_state / "authority" / "ca.key").read_text().splitlines()[1]
    assert (
        host.run("grep --recursive --fixed-strings --quiet -e %s /etc /root /home /tmp /var/tmp", line).rc
        == 1
    )
    assert (lab_state / "authority" / "ca.key").stat().st_mode & 0o777 == 0o600


def test_the_authoritys_key_can_come_from_an_encrypted_variable(
    host: Host, lab_state: Path, converge: Converge
) -> None:
    """Its file is away then; the certificate is signed anew all the same."""
    file = lab_state / "authority" / "ca.key"
    away = file.rename(lab_state / "ca.key.away")
    try:
        before, key = serial(host), away.read_text()
        signed = converge(tls_renew_before_days=398, tls_authority_key=key)
        assert signed.returncode == 0, signed.stdout
        assert serial(host) != before
        host.check_output(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/fullchain.pem")
        assert not file.exists()
    finally:
        away.rename(file)


def test_keys_from_before_a_moment_are_replaced_once(host: Host, converge: Converge) -> None:
    before = host.file(f"{TLS}/privkey.pem").sha256sum
    now = f"{datetime.now(UTC) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
    planned = converge(check=True, tls_keys_since=now)
    assert planned.returncode == 0, planned.stdout
    replaced = converge(tls_keys_since=now)
    assert replaced.returncode == 0, replaced.stdout
    assert host.file(f"{TLS}/privkey.pem").sha256sum != before
    host.check_output(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/fullchain.pem")
    assert "changed=0" in converge(tls_keys_since=now).stdout
    refused = converge(tls_keys_since="yesterday")
    assert 'tls_keys_since is "yesterday"; allowed is' in " ".join(refused.stdout.split())


def test_a_revoked_certificate_is_replaced_and_on_the_list(
    host: Host, variables: dict[str, Any], converge: Converge
) -> None:
    asked = host.check_output(f"openssl x509 -in {TLS}/fullchain.pem -noout -ext crlDistributionPoints")
    assert f"URI:http://{variables['inventory_hostname']}/ca.crl" in asked
    host.check_output(f"{VERIFY_UNREVOKED} {TLS}/fullchain.pem && cp {TLS}/fullchain.pem /opt/stolen.pem")
    number, key = serial(host).removeprefix("serial="), host.file(f"{TLS}/privkey.pem").sha256sum
    # OpenSSL prints it this way too.
    octets = ":".join(number[at : at + 2] for at in range(0, len(number), 2)).lower()
    for spelt in (number, octets):
        run = converge(tls_revoked=[spelt])
        assert run.returncode == 0, run.stdout
        assert "certificate revoked" in host.run(f"{VERIFY_UNREVOKED} /opt/stolen.pem").stderr
        host.check_output(f"{VERIFY_UNREVOKED} {TLS}/fullchain.pem")
        assert number not in serial(host)
        assert host.file(f"{TLS}/privkey.pem").sha256sum != key
        assert "changed=0" in converge(tls_revoked=[spelt]).stdout
    # Taken from the variable, it stays on the list.
    assert "changed=0" in converge().stdout
    assert "certificate revoked" in host.run(f"{VERIFY_UNREVOKED} /opt/stolen.pem").stderr
    for name, value in (("tls_revoked", ["xyz"]), ("tls_revocations_url", "https://example.net/ca.crl")):
        refused = converge(**{name: value})
        assert refused.returncode != 0
        assert name in refused.stdout
        assert "allowed" in refused.stdout


def test_another_authority_signs_a_list_of_its_own(host: Host, lab_state: Path, converge: Converge) -> None:
    folder = lab_state / "authority"
    away = folder.rename(lab_state / "authority.away")
    before = host.file(f"{TLS}/ca.pem").sha256sum
    try:
        assert converge().returncode == 0
        assert host.file(f"{TLS}/ca.pem").sha256sum != before
        host.check_output(f"{VERIFY_UNREVOKED} {TLS}/fullchain.pem")
    finally:
        shutil.rmtree(folder)
        away.rename(folder)
    assert converge().returncode == 0
    host.check_output(f"{VERIFY_UNREVOKED} {TLS}/fullchain.pem")


def test_the_list_outlives_the_certificates(host: Host, converge: Converge) -> None:
    def end() -> datetime:
        shown = host.check_output(f"openssl crl -in {TLS}/ca.crl -inform DER -noout -nextupdate")
        return datetime.strptime(shown, "nextUpdate=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)

    assert end() - datetime.now(UTC) > timedelta(days=793)
    assert converge(tls_valid_days=1000).returncode == 0
    assert end() - datetime.now(UTC) > timedelta(days=1999)
    assert "changed=0" in converge(tls_valid_days=1000).stdout
    assert converge().returncode == 0


def test_renewed_when_little_time_is_left(host: Host, converge: Converge) -> None:
    before, key = serial(host), host.file(f"{TLS}/privkey.pem").sha256sum
    assert converge(tls_renew_before_days=398).returncode == 0
    assert serial(host) != before
    assert host.file(f"{TLS}/privkey.pem").sha256sum == key


def test_another_name_means_another_certificate(host: Host, converge: Converge) -> None:
    assert converge(tls_names=["speech.example.com"]).returncode == 0
    assert "DNS:speech.example.com" in names(host)
    assert converge().returncode == 0
    assert "speech.example.com" not in names(host)


def test_provided_files(host: Host, converge: Converge, tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "provided")
    run = converge(tls_source="files", tls_certificate_file=certificate, tls_private_key_file=key)
    assert run.returncode == 0, run.stdout
    assert host.file(f"{TLS}/fullchain.pem").content_string == Path(certificate).read_text()
    assert host.file(f"{TLS}/privkey.pem").mode == 0o640
    assert Path(key).read_text().splitlines()[1] not in run.stdout
    # Back to where the other tests start.
    assert converge().returncode == 0


def test_wrong_files_are_refused_before_the_host_is_touched(
    host: Host, converge: Converge, tmp_path: Path
) -> None:
    before = host.check_output(f"sha256sum {TLS}/*")
    certificate, key = make_pair(tmp_path, "provided")
    _, others_key = make_pair(tmp_path, "other")
    expired, expired_key = make_pair(tmp_path, "expired", days=-1)
    refused = {
        "does not belong to the key": {
            "tls_certificate_file": certificate,
            "tls_private_key_file": others_key,
        },
        "needs the path of an existing file": {
            "tls_certificate_file": certificate,
            "tls_private_key_file": f"{key}.missing",
        },
        "expired at": {"tls_certificate_file": expired, "tls_private_key_file": expired_key},
    }
    for reason, files in refused.items():
        run = converge(tls_source="files", **files)
        assert run.returncode != 0
        assert reason in " ".join(run.stdout.split())
        assert host.check_output(f"sha256sum {TLS}/*") == before
