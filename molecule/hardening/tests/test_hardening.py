"""A hardened host lets its operator in and nobody else, and goes on working."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Converge, said
from testinfra.host import Host

Login = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def login(address: str, lab_state: Path) -> Login:
    """Log in anew, as an operator does, and run a command."""

    def run(
        *options: str, command: str = "sudo -n id -un", port: int = 22
    ) -> subprocess.CompletedProcess[str]:
        ssh = ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "ControlPath=none", "-p", str(port)]
        ssh += ["-o", f"UserKnownHostsFile={lab_state}/ssh/known_hosts", "-o", "IdentitiesOnly=yes"]
        ssh += ["-o", f"HostKeyAlias={address}", "-i", f"{lab_state}/ssh/id_ed25519"]
        return subprocess.run(
            [*ssh, *options, f"ops@{address}", command], capture_output=True, text=True, check=False
        )

    return run


def test_a_new_login_becomes_root(login: Login) -> None:
    assert login().stdout.strip() == "root"


def test_a_password_is_refused(login: Login) -> None:
    refused = login("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password")
    assert "Permission denied (publickey)" in refused.stderr


@pytest.mark.parametrize(
    "weak",
    [
        ["Ciphers=aes128-cbc"],
        ["MACs=hmac-sha1", "Ciphers=aes256-ctr"],
        ["KexAlgorithms=diffie-hellman-group14-sha1"],
        ["HostKeyAlgorithms=ecdsa-sha2-nistp256"],
    ],
)
def test_weak_algorithms_are_refused(login: Login, weak: list[str]) -> None:
    assert "no matching" in login(*(f"-o{option}" for option in weak)).stderr


def test_ssh_audit_finds_no_failure(host: Host) -> None:
    """Release 2.5.0 warns of what it does not know: this key exchange, and the marker of strict mode."""
    found = host.run("ssh-audit --batch --level warn --no-colors localhost").stdout
    assert "[fail]" not in found
    assert {line.split()[1] for line in found.splitlines() if "[warn]" in line} <= {
        "sntrup761x25519-sha512@openssh.com",
        "kex-strict-s-v00@openssh.com",
    }


def test_keys_of_somebody_else_are_put_back(host: Host, login: Login, converge: Converge) -> None:
    """The drill: settings that sshd takes and no look at them finds wrong, but nobody gets in by them."""
    host.check_output("mkdir -p /etc/ssh/keys")
    host.check_output("cp /etc/ssh/ssh_host_rsa_key.pub /etc/ssh/keys/ops")
    run = converge(hardening_ssh_options={"AuthorizedKeysFile": "/etc/ssh/keys/%u"})
    assert run.returncode != 0
    assert "are as they were before" in said(run)
    assert login().stdout.strip() == "root"
    assert "keys/%u" not in host.file("/etc/ssh/sshd_config").content_string


def test_a_host_that_nobody_tells_puts_them_back_itself(host: Host, login: Login, lab_state: Path) -> None:
    """As when the operator's machine dies in the middle of a run."""
    setting = "/etc/ssh/sshd_config.d/00-0-drill.conf"
    # The connection of the test itself could not be opened again either.
    host.check_output(f"maya1-guard arm 8 && echo 'AllowUsers nobody' >{setting} && maya1-guard reload")
    assert "Permission denied" in login().stderr
    deadline = time.monotonic() + 60
    while login().stdout.strip() != "root":
        assert time.monotonic() < deadline, "the host did not put its settings back"
        time.sleep(1)
    assert not host.file(setting).exists


@pytest.mark.parametrize(
    ("settings", "said_of_it"),
    [
        ({"hardening_ssh_allow_users": ["somebody"]}, "add it, or it is locked out"),
        ({"hardening_ssh_allow_groups": ["staff"]}, "add it, or it is locked out"),
        ({"hardening_ssh_ports": [2222]}, "hardening_ssh_ports is [2222]"),
        ({"hardening_ssh_ciphers": "aes256-ctr"}, "must be a list of names"),
        ({"hardening_rules": {"sudo_password": True}}, "takes NOPASSWD from ops"),
        ({"hardening_rules": {"rsink": True}}, "rsink, which is no rule"),
        (
            {"hardening_ssh_options": {"AuthorizedKeysFile": "/nowhere", "Ciphers": "none-such"}},
            "Bad SSH2 cipher",
        ),
    ],
)
def test_what_would_lock_out_is_refused(
    host: Host, login: Login, converge: Converge, settings: dict[str, Any], said_of_it: str
) -> None:
    before = host.check_output("cat /etc/ssh/sshd_config")
    run = converge(**settings)
    assert run.returncode != 0
    assert said_of_it in said(run)
    assert host.check_output("cat /etc/ssh/sshd_config") == before
    assert login().stdout.strip() == "root"


def test_where_systemd_listens_the_socket_has_the_ports(host: Host, login: Login, converge: Converge) -> None:
    """Debian's own ssh.socket stands in for Ubuntu 24.04, where it is on by default."""
    host.check_output("systemctl stop ssh.service && systemctl enable --now ssh.socket")
    try:
        run = converge(hardening_ssh_ports=[22, 2222])
        assert run.returncode == 0, said(run)
        assert [login(port=port).stdout.strip() for port in (22, 2222)] == ["root", "root"]
    finally:
        host.check_output(
            "rm --force /etc/systemd/system/ssh.socket.d/maya1-hardening.conf"
            " && systemctl disable --now ssh.socket && systemctl restart ssh.service"
        )


def test_containers_keep_their_network(host: Host) -> None:
    assert "net.ipv4.ip_forward = 1" in host.check_output("cat /etc/sysctl.d/zz-maya1-hardening.conf")
    assert "0% packet loss" in host.check_output("docker run --rm tiny ping -c 2 172.17.0.1")


def test_a_route_that_the_kernel_learns_is_kept(host: Host, converge: Converge) -> None:
    """A stand-in for a router, which would say it every few seconds."""
    settings = host.file("/etc/sysctl.d/zz-maya1-hardening.conf")
    assert "net.ipv6.conf.all.accept_ra = 0" in settings.content_string
    gateway = host.check_output("ip -6 route show default").split()[2]
    route = f"default via {gateway} dev eth0 proto ra metric 2048"
    host.check_output(f"ip -6 route add {route}")
    try:
        assert converge().returncode == 0
        assert "accept_ra" not in settings.content_string
    finally:
        host.check_output(f"ip -6 route del {route}")
    assert converge().returncode == 0
    assert "net.ipv6.conf.all.accept_ra = 0" in settings.content_string


def test_packages_with_scripts_install_where_tmp_runs_nothing(host: Host) -> None:
    assert "noexec" in host.check_output("findmnt --noheadings --output OPTIONS /tmp")
    host.check_output("apt-get install --yes --no-install-recommends apt-utils")
    said_by_apt = host.run(
        "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends popularity-contest 2>&1"
    )
    assert said_by_apt.rc == 0
    assert "Permission denied" not in said_by_apt.stdout


def test_a_package_is_not_removed_with_what_needs_it(host: Host, converge: Converge) -> None:
    host.check_output("apt-get install --yes --no-install-recommends equivs")
    host.check_output(
        "cd /var/lib && printf 'Package: needs-rsync\\nDepends: rsync\\n' >needs && equivs-build needs"
        " && apt-get install --yes --no-install-recommends ./needs-rsync_1.0_all.deb",
    )
    run = converge()
    assert run.returncode != 0
    assert "would take needs-rsync along" in said(run)
    host.check_output("apt-get purge --yes needs-rsync rsync")


def test_unwanted_packages_are_gone(host: Host) -> None:
    """telnet was there before."""
    assert not host.package("telnet").is_installed


def test_pam_counts_wrong_passwords_and_judges_new_ones(host: Host) -> None:
    assert "pam_faillock.so preauth" in host.file("/etc/pam.d/common-auth").content_string
    host.check_output("useradd judged")
    try:
        assert host.run("echo judged:short | chpasswd").rc != 0
        assert host.run("echo judged:Xq7-maple-Tr4in-9v | chpasswd").rc == 0
    finally:
        host.check_output("userdel judged")


def test_fail2ban_watches_ssh(host: Host) -> None:
    assert "Status for the jail: sshd" in host.check_output("fail2ban-client status sshd")


def test_the_journal_is_kept(host: Host) -> None:
    assert host.check_output("ls /var/log/journal/*/system.journal")


def test_files_have_their_rules(host: Host) -> None:
    assert host.file("/etc/shadow").mode & 0o137 == 0
    assert host.file("/etc/cron.d").mode == 0o700
    assert host.file("/etc/crontab").mode & 0o077 == 0
