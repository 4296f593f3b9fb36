"""Whatever is killed comes back by itself, and the host speaks again with no hand on it."""

import pytest

from tests.e2e.lab import FIRST, SENTENCE, Client, Lab, eventually

CONTAINER = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' maya1-tts"
UNIT = "systemctl show --property MainPID,ExecMainStartTimestampMonotonic"
KILLS = {
    # What is killed: how, and what shows that the one that came back is another one.
    # First, since what is killed after it must come back under an engine that crashed before.
    "Docker's engine": ("systemctl kill --signal KILL docker", f"{UNIT} docker"),
    "the service's process": (
        "docker exec maya1-tts sh -c 'kill -9 $(cat /proc/1/task/1/children)'",
        CONTAINER,
    ),
    "the container": ("docker kill maya1-tts", CONTAINER),
    "the container, removed": ("docker rm --force maya1-tts", CONTAINER),
    "Redis": ("systemctl kill --signal KILL redis-server", f"{UNIT} redis-server"),
    "NGINX": ("systemctl kill --signal KILL nginx", f"{UNIT} nginx"),
    "Prometheus": ("systemctl kill --signal KILL prometheus", f"{UNIT} prometheus"),
}


def speaks(client: Client, text: str) -> bool:
    return client.speak(text).status_code == 200


@pytest.mark.parametrize("victim", list(KILLS))
def test_a_kill_heals(client: Client, lab: Lab, victim: str) -> None:
    kill, identity = KILLS[victim]
    before = lab.on(FIRST, identity)
    lab.on(FIRST, kill)
    eventually(lambda: lab.on(FIRST, identity) != before, f"another process in place of {victim}")
    # A text of its own: an answer out of the cache would prove nothing.
    eventually(
        lambda: speaks(client, f"We are back after {victim} was killed."), f"speech after {victim} was killed"
    )


def test_speech_goes_on_without_the_cache_and_says_so(client: Client, lab: Lab) -> None:
    def metric() -> str:
        return lab.on(
            FIRST, "curl --silent http://127.0.0.1:8000/metrics | grep '^maya1_tts_cache_up'"
        ).split()[-1]

    eventually(lambda: metric() == "1.0", "the cache is up at first")
    lab.on(FIRST, "systemctl stop redis-server")
    try:
        assert client.speak(SENTENCE).status_code == 200
        eventually(
            lambda: speaks(client, SENTENCE) and metric() == "0.0", "the metric says that the cache is away"
        )
    finally:
        lab.on(FIRST, "systemctl start redis-server")
    eventually(lambda: speaks(client, SENTENCE) and metric() == "1.0", "the cache is used again")


def test_a_restart_of_the_whole_host_heals(client: Client, lab: Lab) -> None:
    boot = "stat --format %Y /run/systemd/private; systemctl show --property UserspaceTimestampMonotonic"
    before = lab.on(FIRST, boot)
    lab.restart(FIRST)
    eventually(lambda: lab.on(FIRST, boot) != before, "the host booted again")
    eventually(
        lambda: speaks(client, "Good morning, the host has been restarted."), "speech after the restart", 180
    )
    rules = lab.on(FIRST, "nft --stateless list chain inet maya1_fleet input")
    assert "policy drop" in rules
    units = "nftables redis-server nginx prometheus prometheus-alertmanager"
    eventually(
        lambda: set(lab.on(FIRST, f"systemctl is-active {units}").split()) == {"active"}, f"{units} run"
    )
