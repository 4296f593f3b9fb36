from typing import Any


def test_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:9100").is_listening
    assert not host.socket("tcp://0.0.0.0:9100").is_listening
    assert not host.socket("tcp://:::9100").is_listening


def test_tells_of_the_machine(host: Any) -> None:
    metrics = scrape(host)
    assert f'nodename="{host.check_output("uname -n")}"' in metrics
    for name in (
        "node_memory_MemAvailable_bytes",
        "node_filesystem_avail_bytes",
        "node_cpu_seconds_total",
        "node_timex_offset_seconds",
    ):
        assert f"\n{name}" in metrics
    assert 'collector="zfs"' not in metrics


def test_textfiles_become_metrics(host: Any) -> None:
    file = "/var/lib/prometheus/node-exporter/molecule.prom"
    try:
        host.check_output(f"echo molecule_answer 42 > {file}")
        assert "\nmolecule_answer 42\n" in scrape(host)
    finally:
        host.run(f"rm -f {file}")


def test_only_root_writes_textfiles(host: Any) -> None:
    assert host.file("/var/lib/prometheus/node-exporter").mode == 0o755
    assert host.run("runuser -u nobody -- touch /var/lib/prometheus/node-exporter/x.prom").failed


def test_the_unit_may_do_little(host: Any) -> None:
    host.check_output("systemd-analyze security --threshold=20 prometheus-node-exporter.service")


def test_starts_with_the_machine(host: Any) -> None:
    assert host.service("prometheus-node-exporter").is_enabled


def scrape(host: Any) -> str:
    # Python, since a bare host has no curl.
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    text: str = host.check_output(f'python3 -c "{program}"')
    return text
