"""The service speaks, and whoever takes it over holds as little as can be."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from conftest import Converge
from testinfra.host import Host


@pytest.fixture(scope="module")
def container(host: Host) -> dict[str, Any]:
    return dict(json.loads(host.check_output("docker inspect maya1-tts"))[0])


@pytest.fixture(scope="module")
def image(host: Host, container: dict[str, Any]) -> str:
    return str(container["Config"]["Image"])


def ready(host: Host) -> bool:
    return bool(
        host.check_output("curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8000/readyz || true")
        == "200"
    )


def test_ready_on_loopback_alone(host: Host) -> None:
    assert ready(host)
    assert host.socket("tcp://127.0.0.1:8000").is_listening
    assert not host.socket("tcp://0.0.0.0:8000").is_listening


def test_nobody_speaks_without_a_token(host: Host) -> None:
    answer = host.check_output(
        "curl -s -w '\\n%{http_code}' -X POST http://127.0.0.1:8000/v1/audio/speech"
    ).splitlines()
    assert answer[-1] == "401"
    assert json.loads(answer[0])["error"]["code"]


def test_docker_finds_it_healthy(host: Host) -> None:
    for _ in range(30):
        if (
            health := host.check_output("docker inspect --format '{{.State.Health.Status}}' maya1-tts")
        ) != "starting":
            break
        time.sleep(1)
    assert health == "healthy"


def test_runs_as_nobody_in_particular(host: Host, container: dict[str, Any]) -> None:
    assert container["Config"]["User"] == "10001:10001"
    processes = host.check_output("docker top maya1-tts -eo uid,pid").splitlines()[1:]
    assert {line.split()[0] for line in processes} == {"10001"}


def test_holds_no_privileges(host: Host, container: dict[str, Any]) -> None:
    limits = container["HostConfig"]
    assert limits["Privileged"] is False
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    status = dict(
        line.split(":\t", 1)
        for line in host.check_output("docker exec maya1-tts cat /proc/self/status").splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0}


def test_writes_nowhere_but_tmp(host: Host, container: dict[str, Any]) -> None:
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    for path in ("/opt/maya1/x", "/models/x", "/etc/x", "/run/secrets/x"):
        assert host.run(f"docker exec maya1-tts touch {path}").failed, path
    assert host.run("docker exec maya1-tts touch /tmp/x").succeeded


def test_is_bounded(container: dict[str, Any], host: Host) -> None:
    limits = container["HostConfig"]
    assert limits["Memory"] == 4 * 1024**3
    assert limits["NanoCpus"] == int(host.check_output("nproc")) * 10**9
    assert limits["PidsLimit"] == 512


def test_secrets_are_files_that_it_alone_reads(host: Host, container: dict[str, Any]) -> None:
    password = host.file("/etc/maya1/secrets/redis_password").content_string.strip()
    assert password
    assert password not in json.dumps(container)
    assert password not in host.file("/etc/maya1/inference/compose.yml").content_string
    assert password not in host.check_output(
        "docker logs maya1-tts 2>&1; journalctl --unit maya1-tts --no-pager"
    )
    folder = host.file("/etc/maya1/inference/secrets")
    assert (folder.user, folder.mode) == ("root", 0o700)
    assert host.file("/etc/maya1/inference/secrets/redis_password").mode == 0o400


def test_uses_the_cache(host: Host) -> None:
    # With the password, through the socket: Redis counts a client that is not this one.
    clients = host.check_output(
        "{ printf 'AUTH '; cat /etc/maya1/secrets/redis_password; echo CLIENT LIST; }"
        " | redis-cli -s /run/maya1-redis/redis.sock"
    )
    assert len([line for line in clients.splitlines() if "cmd=client" not in line and "addr=" in line]) >= 1


def test_image_holds_nothing_of_its_build(host: Host, image: str, variables: dict[str, Any]) -> None:
    """Authorities and package settings are build secrets: neither a layer nor the history has them."""
    secrets = [host.file("/etc/maya1/pip.conf").content_string.strip().splitlines()[-1]]
    secrets += [authority["content"].splitlines()[4] for authority in variables["base_extra_ca_certificates"]]

    def count(text: str) -> int:
        return int(host.run(f"docker save {image} | grep --text --count --fixed-strings -e %s", text).stdout)

    assert count("OpenAI-compatible speech service"), "the search itself works"
    assert {secret: count(secret) for secret in secrets} == dict.fromkeys(secrets, 0)


def test_image_has_no_installer(host: Host) -> None:
    assert host.run("docker exec maya1-tts /opt/maya1/bin/python3 -c 'import pip'").failed


def test_comes_back_after_a_kill(host: Host) -> None:
    before = host.check_output("docker inspect --format '{{.State.Pid}}' maya1-tts")
    host.check_output("docker kill maya1-tts")
    for _ in range(60):
        time.sleep(0.5)
        pid = host.run("docker inspect --format '{{.State.Pid}}' maya1-tts").stdout.strip()
        if pid not in ("", "0", before) and ready(host):
            return
    pytest.fail("the service did not come back within 30 s")


def test_the_same_source_is_not_built_twice(host: Host, converge: Converge) -> None:
    run = converge()
    assert "changed=0" in run.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inference_jwks_file": ""}, "so nobody could be let in"),
        ({"inference_jwks_file": "/nowhere/jwks.json"}, "which is no file on the controller"),
        (
            {"inference_settings": {"WATCHDOG_SECONDS": 600}},
            'inference_settings holds "WATCHDOG_SECONDS", which the service would not read; allowed are',
        ),
    ],
)
def test_wrong_settings_are_named(converge: Converge, wrong: dict[str, Any], message: str) -> None:
    run = converge(check=True, **wrong)
    assert run.returncode != 0
    assert message in " ".join(run.stdout.split())
