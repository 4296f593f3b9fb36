"""The package is a stand-in (repository.yml): what Grafana makes of its settings is not tested."""

import json
from typing import Any


def test_is_installed_at_the_wanted_version_and_held(host: Any) -> None:
    # The repository holds a newer one too.
    assert host.package("grafana").version == "13.2.3"
    assert host.check_output("apt-mark showhold") == "grafana"


def test_repository_is_trusted_by_its_own_key_alone(host: Any) -> None:
    source = host.file("/etc/apt/sources.list.d/grafana.sources").content_string
    assert "Signed-By: /etc/apt/keyrings/grafana.asc" in source


def test_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:3000").is_listening
    assert not host.socket("tcp://0.0.0.0:3000").is_listening
    assert not host.socket("tcp://:::3000").is_listening


def test_password_reaches_the_service_and_nobody_else(host: Any) -> None:
    program = (
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:3000/api/health').read().decode())"
    )
    assert json.loads(host.check_output(f'python3 -c "{program}"'))["password_length"] == 48
    secret = host.file("/etc/maya1/secrets/grafana_admin_password")
    assert (secret.user, secret.mode) == ("root", 0o600)
    assert host.file("/etc/maya1/secrets").mode == 0o700
    assert host.run("runuser -u nobody -- cat /run/maya1-grafana/admin_password").failed
    assert secret.content_string.strip() not in host.check_output("ps -eo args")
    assert secret.content_string.strip() not in host.file("/etc/grafana/grafana.ini").content_string


def test_a_password_of_the_inventory_is_the_administrators_also_where_there_was_another(
    host: Any, converge: Any
) -> None:
    for password in ("Anemone-7-quartz-lantern", "Thistle-9-copper-meadow"):
        changed = converge(grafana_admin_password=password)
        assert changed.returncode == 0, changed.stdout
        assert password not in changed.stdout
        assert host.file("/var/lib/grafana/grafana.db").content_string == password
    again = converge(grafana_admin_password="Thistle-9-copper-meadow")
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout
    refused = converge(grafana_admin_password="admin")
    assert refused.returncode != 0
    assert "grafana_admin_password is neither empty nor" in " ".join(refused.stdout.split())


def test_is_closed_and_tells_nobody(host: Any) -> None:
    settings = host.file("/etc/grafana/grafana.ini").content_string
    for line in (
        "allow_sign_up = false",
        "disable_gravatar = true",
        "reporting_enabled = false",
        "check_for_updates = false",
        "check_for_plugin_updates = false",
        "preinstall_disabled = true",
    ):
        assert f"\n{line}\n" in settings


def test_dashboard_and_data_source_are_readable_by_grafana_and_belong_together(host: Any) -> None:
    source = host.check_output("runuser -u grafana -- cat /etc/grafana/provisioning/datasources/maya1.yaml")
    dashboard = json.loads(host.check_output("runuser -u grafana -- cat /etc/grafana/dashboards/maya1.json"))
    uids = {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"}
    assert uids == {"maya1-prometheus"}
    assert "uid: maya1-prometheus" in source


def test_starts_with_the_machine(host: Any) -> None:
    assert host.service("grafana-server").is_enabled


def test_an_unknown_key_stops_the_role(converge: Any) -> None:
    result = converge(grafana_repository_key_fingerprint="0" * 40, grafana_version="13.2.4")
    assert result.returncode != 0
    assert "Nothing was installed" in result.stdout


def test_a_repository_out_of_reach_is_named_with_the_way_out(converge: Any) -> None:
    result = converge(grafana_repository_url="http://127.0.0.1:1", grafana_version="13.2.4")
    assert result.returncode != 0
    assert "http://127.0.0.1:1 does not answer" in result.stdout
    assert "grafana_install to false" in " ".join(result.stdout.split())


def test_a_repository_out_of_reach_does_not_matter_where_nothing_is_to_be_installed(converge: Any) -> None:
    assert converge(grafana_repository_url="http://127.0.0.1:1", check=True).returncode == 0


def test_upgrade_and_way_back(host: Any, converge: Any) -> None:
    for version in ("13.2.4", "13.2.3"):
        result = converge(grafana_version=version)
        assert result.returncode == 0, result.stdout
        assert host.package("grafana").version == version
        assert host.check_output("apt-mark showhold") == "grafana"
        assert host.service("grafana-server").is_running
