"""What the gateway speaks, by its profile, and what two scanners find about it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from conftest import Converge
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from testinfra.host import Host


def speaks(address: str, version: str) -> bool:
    client = ["openssl", "s_client", f"-{version}", "-connect", f"{address}:443"]
    return subprocess.run(client, input="", capture_output=True, text=True, check=False).returncode == 0


def test_intermediate_and_modern(address: str, converge: Converge) -> None:
    assert (speaks(address, "tls1_2"), speaks(address, "tls1_3")) == (True, True)
    assert converge(gateway_tls_profile="modern").returncode == 0
    assert (speaks(address, "tls1_2"), speaks(address, "tls1_3")) == (False, True)
    assert converge().returncode == 0


def test_testssl_grades_it_a_and_finds_nothing_above_low(host: Host) -> None:
    host.run(
        "rm -f /opt/testssl.json; testssl --quiet --color 0 --warnings off --jsonfile=/opt/testssl.json"
        " --add-ca=/etc/maya1/tls/ca.pem --ip=127.0.0.1 lab-frankfurt-1 >/opt/testssl.txt 2>&1"
    )
    findings = json.loads(host.file("/opt/testssl.json").content_string)
    said = {finding["id"]: finding["finding"] for finding in findings}
    # It went through to the end, with the certificate and attacks known by name.
    assert {"TLS1_3", "cert_chain_of_trust", "heartbleed", "ROBOT", "BEAST", "LUCKY13", "RC4"} <= set(said)
    above_low = ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
    assert not [finding for finding in findings if finding["severity"] in above_low]
    assert said["cert_chain_of_trust"].startswith("passed")
    assert said["overall_grade"] in ("A", "A+")


def test_clients_can_ask_what_the_authority_has_revoked(address: str, lab_state: Path) -> None:
    answer = requests.get(f"http://{address}/ca.crl", allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/pkix-crl")
    authority = x509.load_pem_x509_certificate((lab_state / "authority" / "ca.pem").read_bytes())
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert x509.load_der_x509_crl(answer.content).is_signature_valid(key)


def test_sslscan_finds_no_old_protocol_and_no_weak_cipher(host: Host) -> None:
    report = ElementTree.fromstring(host.check_output("sslscan --xml=- 127.0.0.1 2>/dev/null"))
    enabled = {
        f"{one.get('type')} {one.get('version')}"
        for one in report.iter("protocol")
        if one.get("enabled") == "1"
    }
    assert enabled == {"tls 1.2", "tls 1.3"}
    ciphers = list(report.iter("cipher"))
    assert ciphers
    # It calls the ciphers of TLS 1.3 acceptable.
    assert {(one.get("sslversion"), one.get("strength")) for one in ciphers} == {
        ("TLSv1.2", "strong"),
        ("TLSv1.3", "acceptable"),
    }
    assert {one.get("vulnerable") for one in report.iter("heartbleed")} == {"0"}


@pytest.fixture
def ocsp(host: Host) -> Iterator[str]:
    """A folder with a certificate that names an OCSP responder, which is OpenSSL's own."""
    folder = "/opt/ocsp"
    host.check_output(
        f"""set -e; mkdir -p {folder}; cd {folder}
        new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc"
        openssl req -x509 $new -days 30 -subj /CN=ocsp -keyout ca.key -out ca.pem
        openssl req -new $new -subj /CN=host -keyout key.pem -out request.pem
        echo 'authorityInfoAccess=OCSP;URI:http://127.0.0.1:8888' >names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial \\
            -extfile names -out leaf.pem
        cat leaf.pem ca.pem >chain.pem
        chgrp www-data key.pem; chmod 0640 key.pem
        serial=$(openssl x509 -in leaf.pem -noout -serial | cut -d= -f2)
        printf 'V\\t991231235959Z\\t\\t%s\\tunknown\\t/CN=host\\n' "$serial" >index.txt
        systemd-run --unit ocsp --working-directory {folder} \\
            openssl ocsp -index index.txt -port 8888 -rsigner ca.pem -rkey ca.key -CA ca.pem -ndays 1"""
    )
    yield folder
    host.check_output("systemctl stop ocsp")


def test_ocsp_is_stapled(host: Host, address: str, converge: Converge, ocsp: str) -> None:
    pair = {"gateway_certificate": f"{ocsp}/chain.pem", "gateway_private_key": f"{ocsp}/key.pem"}

    def stapled() -> bool:
        client = ["openssl", "s_client", "-status", "-connect", f"{address}:443"]
        shown = subprocess.run(client, input="", capture_output=True, text=True, check=False).stdout
        return "OCSP Response Status: successful" in shown and "Cert Status: good" in shown

    assert converge(**pair).returncode == 0
    assert not any(stapled() for _ in range(3))
    assert converge(gateway_ocsp_stapling=True, **pair).returncode == 0
    # NGINX asks once a client has come, each of its workers for itself.
    assert any(stapled() or time.sleep(0.5) for _ in range(30))
    assert converge().returncode == 0
