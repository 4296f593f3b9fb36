"""What a lab takes from this machine, and what it refuses. Booting is tested end to end, in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mayafleet import lab
from mayafleet.errors import ExitCode, FleetError


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    regions = "b_region: {hosts: {zulu: }}, a_region: {hosts: {alpha: }}"
    (tmp_path / "hosts.yml").write_text(f"all: {{children: {{{regions}, gpu: {{hosts: {{zulu: }}}}}}}}")
    return tmp_path


def test_hosts_keep_the_inventorys_order_and_get_addresses_by_it(inventory: Path) -> None:
    opened = lab.open_lab("one", inventory, None)
    assert opened.hosts == ["zulu", "alpha"]
    assert opened.address("zulu").endswith(".11")
    assert opened.address("alpha").endswith(".12")
    assert opened.address_ipv6("alpha").endswith("::12")


def test_two_labs_have_networks_of_their_own(inventory: Path) -> None:
    one, two = lab.open_lab("one", inventory, None), lab.open_lab("two", inventory, None)
    assert one.address("zulu") != two.address("zulu")
    assert one.container("zulu") != two.container("zulu")


def test_a_folder_without_hosts_is_no_lab(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"hosts\.yml") as error:
        lab.open_lab("one", tmp_path, None)
    assert error.value.exit_code == ExitCode.USAGE


def test_apt_sources_are_this_machines_own() -> None:
    suite, sources = lab.apt_sources()
    assert suite in Path("/etc/os-release").read_text()
    assert any(line.startswith("deb http") and line.endswith(f"{suite} main") for line in sources)


def test_authorities_of_this_machine_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, named, system = tmp_path / "local", tmp_path / "proxy.pem", "/etc/ssl/certs/ca-certificates.crt"
    folder.mkdir()
    (folder / "company.crt").write_text("A")
    named.write_text("B")
    monkeypatch.setattr(lab, "LOCAL_AUTHORITIES", folder)
    for variable in lab.CA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CERT", str(named))
    # The distribution's own bundle adds nothing that a host lacks.
    monkeypatch.setenv("SSL_CERT_FILE", system)
    assert lab.extra_authorities() == [folder / "company.crt", named]


def test_proxies_and_the_package_index_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    settings = lab.machine_settings()
    assert settings["base_proxy_environment"]["https_proxy"] == "http://proxy.example:3128"
    assert settings["base_pip_index_url"] == "https://index.example/simple"


def test_what_is_written_is_an_inventory(inventory: Path) -> None:
    opened = lab.open_lab("one", inventory, inventory / "state")
    lab.write_inventory(opened, "base:1", inventory / "base.tar")
    written = yaml.safe_load((inventory / "lab.yml").read_text())["all"]
    assert written["hosts"]["alpha"]["ansible_host"] == opened.address("alpha")
    assert "StrictHostKeyChecking" not in written["vars"]["ansible_ssh_common_args"]
    assert lab.inventory_owner(opened) == opened.state


def test_a_host_that_docker_cannot_enter_yet_is_entered_later(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Docker, since the real one refuses only now and then."""
    said = [
        "OCI runtime exec failed: exec failed: unable to start container process: no such file",
        "Error response from daemon: container is not running",
    ]

    def refuse(*arguments: str, stdin: str | None = None) -> str:
        raise FleetError(said.pop(0), "", ExitCode.LAB)

    monkeypatch.setattr(lab, "docker", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(FleetError, match="is not running"):
        lab.exec_in(lab.open_lab("one", inventory, None), "zulu", "true")
    assert said == []
