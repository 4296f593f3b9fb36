import json
import time
from typing import Any

AMTOOL = "amtool --alertmanager.url=http://127.0.0.1:9093"


def test_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:9093").is_listening
    assert not host.socket("tcp://0.0.0.0:9093").is_listening
    assert not host.socket("tcp://:::9093").is_listening


def test_has_no_cluster_port(host: Any) -> None:
    assert not host.socket("tcp://9094").is_listening
    assert not host.socket("udp://9094").is_listening


def test_hands_an_alert_to_the_webhook_with_the_token(host: Any) -> None:
    name = f"Molecule{time.time_ns()}"
    host.check_output(f"{AMTOOL} alert add {name} region=eu host=gpu1 --annotation=summary=hello")
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while not messages and time.monotonic() < deadline:
        time.sleep(1)
        log = host.run("cat /opt/webhook.log").stdout
        messages = [message for message in map(json.loads, log.splitlines()) if name in json.dumps(message)]
    assert messages, "the webhook heard nothing within 30 s"
    assert messages[0]["authorization"] == "Bearer molecule-token"
    alert = messages[0]["body"]["alerts"][0]
    assert alert["labels"] == {"alertname": name, "region": "eu", "host": "gpu1"}
    assert alert["annotations"] == {"summary": "hello"}


def test_a_service_that_is_down_silences_its_lesser_alerts(host: Any) -> None:
    host.check_output(f"{AMTOOL} alert add Maya1ServiceDown region=eu host=inhibit")
    host.check_output(f"{AMTOOL} alert add Maya1CacheDown region=eu host=inhibit")
    host.check_output(f"{AMTOOL} alert add Maya1CacheDown region=eu host=other")
    alerts = json.loads(host.check_output(f"{AMTOOL} alert query --inhibited --active -o json"))
    state = {(a["labels"]["alertname"], a["labels"].get("host")): a["status"]["inhibitedBy"] for a in alerts}
    assert state["Maya1CacheDown", "inhibit"]
    assert not state["Maya1CacheDown", "other"]
    assert not state["Maya1ServiceDown", "inhibit"]


def test_secrets_are_closed(host: Any) -> None:
    for path in ("/etc/prometheus/alertmanager.yml", "/etc/prometheus/alertmanager_webhook_token"):
        file = host.file(path)
        assert (file.user, file.mode) == ("prometheus", 0o600)
    assert "molecule-token" not in host.check_output("ps -eo args")


def test_the_unit_may_do_little(host: Any) -> None:
    host.check_output("systemd-analyze security --threshold=20 prometheus-alertmanager.service")


def test_starts_with_the_machine(host: Any) -> None:
    assert host.service("prometheus-alertmanager").is_enabled


def test_a_broken_configuration_is_refused_and_the_last_good_one_stays(host: Any, converge: Any) -> None:
    before = host.file("/etc/prometheus/alertmanager.yml").content
    # A URL that only amtool finds wrong.
    result = converge(alertmanager_webhook_url="http://[nowhere/")
    assert result.returncode != 0
    assert "most likely alertmanager_webhook_url" in " ".join(result.stdout.split())
    assert host.file("/etc/prometheus/alertmanager.yml").content == before
    host.check_output(f"{AMTOOL} config show")


def test_the_token_is_never_shown(converge: Any) -> None:
    result = converge(alertmanager_webhook_token="another-token", check=True)
    assert result.returncode == 0, result.stdout
    assert "another-token" not in result.stdout + result.stderr


def test_without_a_webhook_the_token_goes_and_alertmanager_stays(host: Any, converge: Any) -> None:
    try:
        assert converge(alertmanager_webhook_url="", alertmanager_webhook_token="").returncode == 0
        assert not host.file("/etc/prometheus/alertmanager_webhook_token").exists
        assert "webhook" not in host.check_output(f"{AMTOOL} config show")
    finally:
        assert converge().returncode == 0
