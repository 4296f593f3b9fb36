"""No secret of the operator shows: the first run was at -vvv with --diff, and these look for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e import leaks
from tests.e2e.conftest import Site
from tests.e2e.lab import FIRST, NAME, Client, Lab

# Where the roles put them, for root or one service alone.
HOLDERS = {
    "/etc/maya1/secrets/redis_password",
    "/etc/maya1/secrets/grafana_admin_password",
    "/etc/maya1/inference/secrets/redis_password",
    "/etc/maya1/inference/secrets/audit_hash_key",
    "/etc/redis/redis.conf",
    "/etc/prometheus/alertmanager_webhook_token",
}
ROTATED = {
    "redis": "/etc/maya1/inference/secrets/redis_password",
    "key": "/etc/maya1/tls/privkey.pem",
    "certificate": "/etc/maya1/tls/fullchain.pem",
    "jwt": "/etc/maya1/inference/secrets/jwks.json",
}
ON_HOST = ("docker", "exec", "-i", f"{NAME}-{FIRST}")


@pytest.fixture(scope="module")
def wanted(lab: Lab, site: Site) -> dict[str, str]:
    """The operator's secrets, and the key that the host made for itself."""
    assert site.first.code == 0, site.first.output
    host_key = lab.on(FIRST, "cat /etc/maya1/tls/privkey.pem")
    return leaks.needles(lab.secrets | {"host_key": host_key})


def test_every_secret_was_looked_for(lab: Lab, wanted: dict[str, str]) -> None:
    for name in (
        "fleet_jwt_key", "tls_authority_key", "redis_password", "grafana_admin_password",
        "alertmanager_webhook_token", "tls_acme_dns_credentials", "audit_hash_key", "host_key",
    ):  # fmt: skip
        assert any(known.startswith(name) for known in wanted), name


def test_the_run_was_as_talkative_as_it_can_be(site: Site) -> None:
    printed = (Path(site.first.result["run_dir"]) / "stdout").read_text()
    assert "ESTABLISH SSH CONNECTION" in printed  # -vvv
    assert "+++ after" in printed  # --diff


def test_process_lists_showed_none(site: Site) -> None:
    """On the host and on this machine, some times a second; that they were looked at is shown by a decoy."""
    assert min(site.watched.samples) > 100
    on_host, here = site.watched.found
    assert on_host == {("decoy", "cmdline"), ("decoy", "environ")}
    # Who is not root does not see environments of the host's processes from here.
    assert here - {("decoy", "environ")} == {("decoy", "cmdline")}


def test_the_operators_side_keeps_none(lab: Lab, site: Site, wanted: dict[str, str]) -> None:
    assert not leaks.in_text(wanted, site.first.output)
    kept = [lab.runs, lab.inventory, Path.home() / ".ansible"]
    assert leaks.in_files(wanted, kept) == set()
    decoy = lab.runs / "decoy"
    decoy.write_text(lab.secrets["redis_password"])
    assert leaks.in_files(wanted, kept) == {("redis_password[0]", str(decoy))}
    decoy.unlink()


def test_the_hosts_logs_have_none(lab: Lab, wanted: dict[str, str]) -> None:
    journal = lab.on(FIRST, "journalctl --no-pager --all --output=export")
    assert "COMMAND=" in journal  # what sudo was asked for is there too
    assert not leaks.in_text(wanted, journal)
    assert leaks.in_files(wanted, ["/var/log"], (*ON_HOST, "python3")) == set()


def test_on_the_host_only_its_files_have_them(wanted: dict[str, str]) -> None:
    found = leaks.in_files(wanted, ["/"], (*ON_HOST, "python3"))
    assert {path for _, path in found} == HOLDERS | {"/etc/maya1/tls/privkey.pem"}
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "python3")
    assert leaks.in_files(wanted, ["/"], (*ON_HOST, *nobody)) == set()


def test_rotated_secrets_arrive_and_old_tokens_are_still_good(lab: Lab, client: Client) -> None:
    before = {name: lab.on(FIRST, f"cat {path}") for name, path in ROTATED.items()}
    for name in ("jwt", "redis", "authority", "tls"):
        rotated = lab.mayafleet("secrets", "rotate", name, "-i", str(lab.inventory))
        assert rotated.code == 0, rotated.output
    run = lab.provision("--region", "eu_frankfurt", "--tags", "tls,redis,inference")
    assert run.code == 0, run.output
    after = {name: lab.on(FIRST, f"cat {path}") for name, path in ROTATED.items()}
    assert all(before[name] != after[name] for name in ROTATED)
    new, old = x509.load_pem_x509_certificates(lab.authority.read_bytes())
    x509.load_pem_x509_certificate(after["certificate"].encode()).verify_directly_issued_by(new)
    x509.load_pem_x509_certificate(before["certificate"].encode()).verify_directly_issued_by(old)
    issued = lab.mayafleet("jwt", "issue", "--subject", "t", "-i", str(lab.inventory), "--host", FIRST)
    for caller in (client, Client(lab, issued.output.strip())):
        assert caller.speak().status_code == 200
