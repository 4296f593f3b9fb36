"""A cache that only those with the password reach, on this host alone, and that comes back."""

from __future__ import annotations

import time

import pytest
from conftest import Converge, said
from testinfra.host import Host

SOCKET = "/run/maya1-redis/redis.sock"
PASSWORD_FILE = "/etc/maya1/secrets/redis_password"


def ask(host: Host, command: str) -> str:
    """What Redis answers to someone who has the password."""
    script = f"{{ printf 'AUTH '; cat {PASSWORD_FILE}; echo '{command}'; }} | redis-cli -s {SOCKET}"
    return str(host.check_output(script)).removeprefix("OK\n")


def test_nothing_listens_on_tcp(host: Host) -> None:
    assert "redis" not in host.check_output("ss --listening --tcp --processes --no-header")


def test_password_is_required(host: Host) -> None:
    assert "NOAUTH" in host.check_output(f"redis-cli -s {SOCKET} PING")
    assert ask(host, "PING") == "PONG"


@pytest.mark.parametrize(("user", "admitted"), [("redis", True), ("nobody", False)])
def test_socket_is_for_its_group(host: Host, user: str, admitted: bool) -> None:
    group = user if admitted else "nogroup"
    answer = host.run(f"setpriv --reuid={user} --regid={group} --clear-groups redis-cli -s {SOCKET} PING")
    assert ("NOAUTH" in answer.stdout) is admitted


def test_password_is_for_root_alone(host: Host) -> None:
    file = host.file(PASSWORD_FILE)
    assert (file.user, file.mode) == ("root", 0o600)
    assert host.file("/etc/maya1/secrets").mode == 0o700
    assert host.file("/etc/redis/redis.conf").mode == 0o640


def test_password_is_in_no_process_list(host: Host) -> None:
    password = host.file(PASSWORD_FILE).content_string.strip()
    assert len(password) == 64
    # Command lines and environments of all processes, as root sees them.
    processes = host.run("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'").stdout
    assert "redis-server" in processes
    assert password not in processes


def test_a_password_of_the_inventory_takes_the_place_of_the_hosts_own(host: Host, converge: Converge) -> None:
    given = "Marigold-4-harbor-velvet"
    for check in (True, False):
        run = converge(check=check, redis_password=given)
        assert run.returncode == 0, run.stdout
        assert given not in run.stdout
    assert host.file(PASSWORD_FILE).content_string.strip() == given
    assert ask(host, "PING") == "PONG"
    assert "changed=0" in converge(redis_password=given).stdout
    assert "redis_password is neither empty nor" in said(converge(redis_password="too short"))


def test_memory_is_bounded_and_the_least_used_goes(host: Host) -> None:
    assert ask(host, "CONFIG GET maxmemory").split() == ["maxmemory", str(256 * 1024**2)]
    assert ask(host, "CONFIG GET maxmemory-policy").split() == ["maxmemory-policy", "volatile-lfu"]


def test_nothing_is_kept_on_disk(host: Host) -> None:
    assert ask(host, "SET audio x") == "OK"
    host.check_output("systemctl restart redis-server")
    assert ask(host, "EXISTS audio") == "0"


def test_comes_back_after_a_kill(host: Host) -> None:
    host.check_output("systemctl kill --signal=KILL redis-server")
    for _ in range(20):
        time.sleep(0.5)
        if host.run(f"redis-cli -s {SOCKET} PING").rc == 0:
            break
    assert ask(host, "PING") == "PONG"
