"""How fast is a cache hit through the gateway? Aim: 5 ms to the first byte (p95), a third of NGINX's speed.

NGINX runs with the template of roles/gateway: TLS, its headers, its log. Changed are the limits for one
address, which a user may set and one client would hit at once, and the ports and paths; added is a location
with the same bytes as a file, to compare with.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import jinja2
import yaml
from conftest import free_port, wait_for
from maya1_tts.bench.client import Client
from maya1_tts.bench.load import Limit, Load

ROLE = harness.PROJECT / "roles" / "gateway"
TEXT = "The ferry leaves at noon. Please be at the harbour early."
CONNECTIONS = 16


def gateway_configuration(folder: Path, upstream: str, port: int) -> str:
    """The role's nginx.conf for a folder instead of a host."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)
    environment.filters["to_json"] = json.dumps
    variables = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()) | {
        "ansible_managed": "bench",
        "gateway_upstream": upstream,
        "gateway_certificate": folder / "cert.pem",
        "gateway_private_key": folder / "key.pem",
        "gateway_requests_per_second": 1_000_000,
        "gateway_burst": 100_000,
        "gateway_probes_per_second": 1_000_000,
        "gateway_connections": 10_000,
    }
    # Its values name each other, which Ansible resolves as they are used.
    inner = (ROLE / "vars" / "main.yml").read_text()
    variables |= yaml.safe_load(environment.from_string(inner).render(variables | yaml.safe_load(inner)))
    text = environment.from_string((ROLE / "templates" / "nginx.conf.j2").read_text()).render(variables)
    file = f"location /file/ {{ alias {folder}/; }}\n        location / {{"
    for pattern, new in (
        (r"^user .*;", "user root;"),
        (r"/run/nginx/nginx.pid", f"{folder}/nginx.pid"),
        (r"/var/log/nginx", str(folder)),
        (r"listen \[::\].*\n", ""),
        (r"listen 80 ", f"listen 127.0.0.1:{free_port()} "),
        (r"listen 443 ", f"listen 127.0.0.1:{port} "),
        (r"^http \{", f"http {{ client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;"),
        (r"location / \{", file),
    ):
        text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        if not count:
            raise SystemExit(f"cache_hit.py: the gateway's template has no {pattern!r} any more.")
    return text


@contextlib.contextmanager
def gateway(upstream: str) -> Iterator[tuple[str, Path]]:
    """Its URL, and the folder with `ca.pem` and what lies under /file/."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "1", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True,
        )  # fmt: skip
        (folder / "nginx.conf").write_text(gateway_configuration(folder, upstream, port))
        command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log", "-g", "daemon off;"]
        nginx = subprocess.Popen(command)
        try:
            wait_for((folder / "nginx.pid").exists, "nginx writes its pid", 10)
            yield f"https://127.0.0.1:{port}", folder
        finally:
            nginx.terminate()
            nginx.wait()


def wrk(url: str, seconds: int, script: Path) -> float:
    """Requests a second. Raises SystemExit when any of them failed."""
    command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-s", script, url]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"cache_hit.py: some requests failed:\n{told}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", told)[0])


def main() -> None:
    quick = harness.quick()
    rounds, seconds, requests = (1, 1, 50) if quick else (5, 5, 2000)
    harness.heading("Cache hits through the gateway", "tests/bench/inference/cache_hit.py")
    with (
        harness.serving(redis=True) as service,
        gateway(service.url.removeprefix("http://")) as (url, folder),
    ):
        trust = ssl.create_default_context(cafile=folder / "cert.pem")

        def load() -> Load:
            texts = itertools.repeat(TEXT)
            return harness.load_on(url, texts, format="wav", stream=False, tls=trust)

        body = service.speak(TEXT, response_format="wav").content
        (folder / "speech.wav").write_bytes(body)
        harness.closed(load(), 4, Limit(requests=50), format="wav")  # warm connections from the gateway on
        rows = []
        for clients in (1, CONNECTIONS):
            one = harness.closed(load(), clients, Limit(requests=requests), format="wav")
            assert one.good == one.requests, one
            ttfa = one.ttfa_seconds
            cells = [f"{value * 1000:.1f}" for value in (ttfa.p50, ttfa.p95, ttfa.p99) if value is not None]
            rows.append((one.load, *cells, f"{one.requests_per_second:.0f}", f"{one.client_cpu:.0%}"))
        harness.markdown(
            ("first byte of a hit", "p50 ms", "p95 ms", "p99 ms", "hits/s", "client's core"), rows
        )
        harness.note(
            f"Warm TLS connections, {len(body)} bytes of WAV, `maya1-tts bench`.",
            "Aim: p95 at most 5 ms with one client.",
        )

        if shutil.which("wrk"):
            post, get = folder / "post.lua", folder / "get.lua"
            asked = json.dumps({"model": "tts-1", "input": TEXT, "response_format": "wav"})
            post.write_text(
                f"wrk.method = 'POST'\nwrk.body = [[{asked}]]\n"
                "wrk.headers['Content-Type'] = 'application/json'\n"
            )
            get.write_text("")
            client = "wrk"
            sides = (
                lambda: wrk(f"{url}/v1/audio/speech", seconds, post),
                lambda: wrk(f"{url}/file/speech.wav", seconds, get),
            )
        else:
            client = "maya1-tts bench, as wrk is not installed (on Debian: apt-get install wrk)"

            def own(kind: str) -> float:
                one = load()
                if kind == "file":
                    one.client = Client(f"{url}/file/speech.wav", {}, tls=trust, method="GET")
                return harness.closed(
                    one, CONNECTIONS, Limit(seconds=seconds), format="wav"
                ).requests_per_second

            sides = (lambda: own("service"), lambda: own("file"))
        service_hits, file_hits = harness.alternate(rounds, *sides)
    ratios = [ours / theirs for ours, theirs in zip(service_hits, file_hits, strict=True)]
    harness.markdown(
        ("hits a second", "service behind NGINX", "NGINX, the same bytes as a file", "ratio", "aim"),
        [(f"{CONNECTIONS} connections", harness.spread(service_hits, ".0f"), harness.spread(file_hits, ".0f"),
          harness.spread(ratios), "at least 0.33")],
    )  # fmt: skip
    harness.note(
        f"{rounds} rounds of {seconds} s; median (range). Client: {client}; a file is asked for by GET."
    )


if __name__ == "__main__":
    main()
