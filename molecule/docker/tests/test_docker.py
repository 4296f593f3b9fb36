"""An engine that publishes nothing by accident, keeps containers running, and shares its settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from conftest import Converge
from testinfra.host import Host


@pytest.fixture(scope="module")
def container(host: Host) -> Iterator[str]:
    """A container that publishes a port and names no address."""
    host.check_output("docker run --detach --name web --publish 8080:80 tiny httpd -f -p 80")
    yield "web"
    host.run("docker rm --force web")


def test_a_port_without_address_is_published_on_loopback(
    host: Host, container: str, reachable: Callable[[int], bool]
) -> None:
    assert host.socket("tcp://127.0.0.1:8080").is_listening
    assert not host.socket("tcp://0.0.0.0:8080").is_listening
    assert not reachable(8080)


def test_containers_survive_a_restart_of_the_engine(host: Host, container: str) -> None:
    inspect = f"docker inspect --format '{{{{.State.StartedAt}}}} {{{{.State.Pid}}}}' {container}"
    before = host.check_output(inspect)
    host.check_output("systemctl restart docker")
    assert host.check_output(inspect) == before
    assert host.file(f"/proc/{before.split()[1]}").exists


def test_containers_gain_no_privileges(host: Host, container: str) -> None:
    assert host.check_output("docker exec web /busybox grep NoNewPrivs /proc/self/status").split() == [
        "NoNewPrivs:",
        "1",
    ]


def test_logs_are_bounded(host: Host, container: str) -> None:
    # The driver `local` rotates by itself.
    assert host.check_output("docker inspect --format '{{.HostConfig.LogConfig.Type}}' web") == "local"


def test_keys_of_other_owners_stay(host: Host) -> None:
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert settings["labels"] == ["owner=somebody-else"]
    assert settings["live-restore"] is True
    assert host.check_output("docker info --format '{{.Labels}}'") == "[owner=somebody-else]"


def test_compose_is_there(host: Host) -> None:
    host.check_output("docker-compose version || docker compose version")


def test_a_second_engine_is_refused(host: Host, converge: Converge) -> None:
    host.check_output("mkdir -p /snap/bin && touch /snap/bin/docker")
    run = converge(check=True)
    host.check_output("rm -r /snap")
    assert run.returncode != 0
    assert "Remove it with `snap remove docker`" in " ".join(run.stdout.split())


def test_options_that_the_engine_refuses_are_taken_back(host: Host, converge: Converge) -> None:
    before = host.file("/etc/docker/daemon.json").content_string
    run = converge(docker_daemon_options={"no-such-option": True})
    said = " ".join(run.stdout.split())
    assert run.returncode != 0
    assert "don't match any configuration option: no-such-option" in said
    assert "It runs with its options of before" in said
    assert host.file("/etc/docker/daemon.json").content_string == before
    assert host.service("docker").is_running
