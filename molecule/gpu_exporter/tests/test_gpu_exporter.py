"""The exporter as a service, on a library that plays NVML, and a container that plays dcgm-exporter's."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from conftest import Converge
from testinfra.host import Host

STATE = """init=0
driver=535.309.01
count=1
0.name=NVIDIA A10
0.uuid=GPU-1
0.minor=0
0.pci=00000000:3B:00.0
0.temperature=41
"""
GPU = 'gpu="0",UUID="GPU-1",pci_bus_id="00000000:3B:00.0",device="nvidia0",modelName="NVIDIA A10"'


@pytest.fixture(autouse=True)
def machine(host: Host) -> None:
    become(host, STATE)


def become(host: Host, state: str) -> None:
    host.check_output("printf %s > /opt/fake_nvml/new; mv /opt/fake_nvml/new /opt/fake_nvml/state", state)


def scrape(host: Host) -> str:
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9400/metrics').read().decode())"
    text: str = host.check_output(f'python3 -c "{program}"')
    return text


def test_listens_on_loopback_alone(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:9400").is_listening
    assert not host.socket("tcp://0.0.0.0:9400").is_listening


def test_tells_of_the_gpus(host: Host) -> None:
    assert f"\nDCGM_FI_DEV_GPU_TEMP{{{GPU}}} 41\n" in scrape(host)


def test_a_mismatch_is_a_metric_and_no_crash(host: Host) -> None:
    started = host.check_output("systemctl show --value --property ExecMainStartTimestamp maya1-gpu-exporter")
    become(host, STATE.replace("init=0", "init=18"))
    host.check_output("systemctl restart maya1-gpu-exporter")
    wait_for(host, "\nmaya1_gpu_driver_mismatch 1\n")
    become(host, STATE)
    assert "\nmaya1_gpu_driver_mismatch 0\n" in scrape(host)
    assert host.service("maya1-gpu-exporter").is_running
    assert started != host.check_output(
        "systemctl show --value --property ExecMainStartTimestamp maya1-gpu-exporter"
    )


def test_xids_of_the_kernel_log_are_counted(host: Host) -> None:
    boot = host.check_output("tr -d - < /proc/sys/kernel/random/boot_id")
    folder = f"/var/log/journal/{host.check_output('cat /etc/machine-id')}"
    entry = (
        f"__REALTIME_TIMESTAMP={int(time.time() * 1e6)}\n__MONOTONIC_TIMESTAMP=1000000\n_BOOT_ID={boot}\n"
        "_TRANSPORT=kernel\nPRIORITY=3\nSYSLOG_IDENTIFIER=kernel\n"
        "MESSAGE=NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, GPU has fallen off the bus.\n\n"
    )
    file = f"{folder}/molecule.journal"
    try:
        host.check_output(f"mkdir -p {folder}")
        host.check_output(
            f"printf %s | /lib/systemd/systemd-journal-remote --output={file} - && chmod 644 {file}", entry
        )
        host.check_output("systemctl restart maya1-gpu-exporter")
        wait_for(host, f'DCGM_EXP_XID_ERRORS_COUNT{{{GPU},xid="79",')
    finally:
        host.run(f"rm -f {file}")


def test_node_exporter_tells_how_many_there_should_be(host: Host) -> None:
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    assert "\nmaya1_gpu_wanted 2\n" in host.check_output(f'python3 -c "{program}"')


def test_runs_closed_in(host: Host) -> None:
    assert host.check_output("systemctl show --value --property DevicePolicy maya1-gpu-exporter") == "closed"
    pid = host.check_output("systemctl show --value --property MainPID maya1-gpu-exporter")
    assert host.check_output(f"stat -c %U /proc/{pid}") != "root"
    assert host.run("systemd-analyze security --threshold=20 maya1-gpu-exporter.service").rc == 0


@pytest.fixture
def image(host: Host, converge: Converge) -> Iterator[str]:
    yield host.check_output("docker image inspect --format '{{.Id}}' stand-in")
    assert converge(gpu_exporter_source="nvml").returncode == 0


def test_the_container_gets_its_counters_and_listens_on_loopback(
    host: Host, converge: Converge, image: str
) -> None:
    run = converge(gpu_exporter_source="dcgm", gpu_exporter_dcgm_image=image)
    assert run.returncode == 0, run.stdout
    page = wait_for(host, "DCGM_EXP_XID_ERRORS_COUNT, gauge")
    assert "--collectors /etc/maya1/counters.csv --xid-count-window-size 3600000" in page
    assert not host.socket("tcp://0.0.0.0:9400").is_listening
    again = converge(gpu_exporter_source="dcgm", gpu_exporter_dcgm_image=image)
    assert "changed=0" in again.stdout


def test_bad_input_is_refused_before_anything_changes(converge: Converge) -> None:
    for variables, told in (
        ({"gpu_exporter_listen_address": "0.0.0.0:9400"}, "gpu_exporter_listen_address is '0.0.0.0:9400'"),
        ({"gpu_exporter_xid_window_seconds": 0}, "gpu_exporter_xid_window_seconds is 0"),
        (
            {"gpu_exporter_source": "dcgm", "gpu_exporter_dcgm_image": "dcgm-exporter:latest"},
            "gpu_exporter_dcgm_image is 'dcgm-exporter:latest'",
        ),
    ):
        run = converge(**variables)
        assert run.returncode != 0
        assert told in " ".join(run.stdout.split())
        assert "changed=0" in run.stdout


def wait_for(host: Host, text: str) -> str:
    page = ""
    for _ in range(100):
        answer = host.run("curl --silent --fail http://127.0.0.1:9400/metrics")
        page = "\n" + answer.stdout
        if text in page:
            return page
        time.sleep(0.2)
    raise AssertionError(f"{text!r} is not in:\n{page}")
