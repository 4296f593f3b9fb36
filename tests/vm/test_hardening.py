"""A hardened host as independent scanners see it, on a kernel of its own; and that it goes on serving.

Its root is a lab host after site.yml. What a container cannot have (mounts, boot loader, the kernel's
settings) role hardening does in the guest.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayafleet import hardening, project, tokens
from tests.vm.guest import Guest, Root, console, make_root, recap

HERE = Path(__file__).parent
ROOT = project.root()
HOST = "lab-frankfurt-1"


@dataclass(frozen=True)
class Score:
    """What scanners say of a host: a result for each SCAP rule, and Lynis's index."""

    rules: dict[str, str]
    lynis: int

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.rules.values())

    @property
    def passed(self) -> float:
        """Of the rules that apply and that OpenSCAP has a check for."""
        judged = sum(self.counts[result] for result in ("pass", "fail", "error", "unknown"))
        return self.counts["pass"] / judged

    def not_passed(self) -> set[str]:
        return {rule for rule, result in self.rules.items() if result in ("fail", "error", "unknown")}

    def __str__(self) -> str:
        said = ", ".join(f"{count} {result}" for result, count in sorted(self.counts.items()))
        return f"OpenSCAP {self.passed:.1%} ({said}); Lynis {self.lynis}"


# Files in images are no programs or settings of the host. The benchmark's own scripts pass over them too, and
# an emulated guest reads them for very long.
WITHOUT_IMAGES = """
if command -v dockerd >/dev/null; then
    systemctl stop maya1-tts docker.socket docker containerd
    mount -t tmpfs tmpfs /var/lib/docker
fi
"""
WITH_IMAGES = """
if mountpoint -q /var/lib/docker; then
    umount /var/lib/docker
    systemctl start containerd docker maya1-tts
fi
"""


def judge(guest: Guest, title: str) -> Score:
    """Run the scanners."""
    guest.run(WITHOUT_IMAGES)
    guest.run((HERE / "openscap.sh").read_text(), timeout=7200)
    said = guest.run("cat /root/rules").splitlines()
    rules = dict(line.removeprefix(f"{hardening.SCAP}_rule_").split(":") for line in said)
    guest.run("lynis audit system --quick --no-colors >/root/lynis.log 2>&1", timeout=3600)
    guest.run(WITH_IMAGES)
    report = guest.run("grep -E '^(hardening_index|warning|suggestion)' /var/log/lynis-report.dat")
    index = next(line for line in report.splitlines() if line.startswith("hardening_index="))
    score = Score(rules, int(index.split("=")[1]))
    console.print(f"{title}: {score}", *sorted(score.not_passed()), report, sep="\n", highlight=False)
    return score


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Score:
    """A fresh host with the same scanners, booted the same way."""
    root = make_root("fresh", [HERE / "root.yml", HERE / "scanners.yml"], [ROOT / "roles/base"])
    with Guest(root, tmp_path_factory.mktemp("fresh")) as guest:
        guest.run(BOOT_LOADER)
        return judge(guest, "before")


@pytest.fixture(scope="module")
def root() -> Root:
    used = [ROOT / "roles", ROOT / "mayafleet/data", ROOT / "inventories/lab", ROOT / "inference"]
    playbooks = [HERE / "root.yml", HERE / "scanners.yml", ROOT / "playbooks/site.yml"]
    # An emulated voice may take minutes for a sentence. Elsewhere it would be stuck, or a queue too long.
    patience = {"MAYA1_TTS_WATCHDOG_SECONDS": 600, "MAYA1_TTS_QUEUE_SECONDS": 600}
    return make_root(
        "hardened", playbooks, used, inference_settings=patience, gateway_stream_timeout_seconds=600
    )


@pytest.fixture(scope="module")
def guest(root: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Hardened, and booted again."""
    with Guest(root, tmp_path_factory.mktemp("hardened")) as guest:
        guest.run(BOOT_LOADER)
        guest.play(HERE / "harden.yml")
        # AIDE's database, which is made in the background.
        guest.run("[ -e /var/lib/aide/aide.db ] || systemctl start aidecheck", timeout=1800)
        guest.reboot()
        yield guest


@pytest.fixture(scope="module")
def after(guest: Guest) -> Score:
    return judge(guest, "after")


# The installer of a system does this; in the lab host it would find no disk.
BOOT_LOADER = "mkdir -p /boot/grub && update-grub"


# Asked seldom: emulated, each question takes from the voice what it needs to get ready.
UNTIL_READY = "until curl --silent --fail --max-time 60 http://127.0.0.1:8000/readyz; do sleep 15; done"


def speak(guest: Guest) -> bytes:
    """A sentence over HTTPS, from outside."""
    guest.run(UNTIL_READY, timeout=1800)
    said = guest.root.variables()
    token = tokens.issue(
        tokens.load_key(guest.root.token_key),
        issuer=said["fleet_jwt_issuer"],
        audience=said["fleet_jwt_audience"],
        subject="tests",
    )
    authority = guest.folder / "ca.pem"
    authority.write_text(guest.run("cat /etc/maya1/tls/ca.pem"))
    body = {"model": "tts-1", "input": "It still speaks.", "voice": "joe", "response_format": "wav"}
    request = ["curl", "--silent", "--show-error", "--fail", "--max-time", "600", "--cacert", str(authority)]
    request += ["--connect-to", f"{HOST}:443:127.0.0.1:{guest.https_port}", f"https://{HOST}/v1/audio/speech"]
    request += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    # The token comes over stdin: it belongs in no list of processes.
    header = f'header = "Authorization: Bearer {token}"'
    return subprocess.run(
        [*request, "--config", "-"], input=header.encode(), capture_output=True, check=True
    ).stdout


def test_it_speaks_after_a_reboot(guest: Guest) -> None:
    wav = speak(guest)
    assert wav[:4] == b"RIFF"
    assert len(wav) > 20_000


def test_docker_runs_containers_with_a_network(guest: Guest) -> None:
    image = guest.run("docker inspect --format '{{.Image}}' maya1-tts").strip()
    gateway = "172.17.0.1"
    told = guest.run(
        f"docker run --rm --entrypoint python3 {image} -c "
        f"\"import socket; socket.create_connection(('{gateway}', 22), 60); print('reached')\" 2>&1"
    )
    assert "reached" in told


def test_the_kernel_has_what_a_container_could_not_have(guest: Guest) -> None:
    assert "noexec" in guest.run("findmnt --noheadings --output OPTIONS /dev/shm")
    assert guest.run("sysctl --values kernel.yama.ptrace_scope net.ipv4.conf.all.log_martians").split() == [
        "1",
        "1",
    ]
    assert "apparmor=1" in guest.run("cat /boot/grub/grub.cfg")
    assert guest.run("aa-enabled").strip() == "Yes"


def test_a_second_run_changes_nothing(guest: Guest) -> None:
    told = guest.play(HERE / "harden.yml")
    assert recap(told)["changed"] == 0, told


def test_openscap_passes_what_is_not_waived(after: Score) -> None:
    waived = {rule for waiver in hardening.waivers() for rule in waiver.scap}
    assert after.not_passed() - waived == set()


def test_scanners_find_it_hardened_and_a_fresh_host_not(before: Score, after: Score) -> None:
    assert before.passed < 0.95 <= after.passed
    assert before.lynis < 85 <= after.lynis
