"""Is the load tool itself fast enough? Asked of NGINX, which sends a file faster than anyone speaks."""

from __future__ import annotations

import itertools
import shutil
import ssl

import harness
from cache_hit import CONNECTIONS, gateway, wrk
from maya1_tts.bench.client import Client
from maya1_tts.bench.load import Limit, Load
from maya1_tts.bench.report import Summary
from test_bench import wav

SECONDS_OF_AUDIO = 3.0


def main() -> None:
    quick = harness.quick()
    rounds, seconds = (1, 1) if quick else (5, 5)
    harness.heading("The load tool itself", "tests/bench/inference/tool.py")
    body = wav(SECONDS_OF_AUDIO)
    with gateway("127.0.0.1:9") as (url, folder):
        (folder / "speech.wav").write_bytes(body)
        script = folder / "get.lua"
        script.write_text("")
        trust = ssl.create_default_context(cafile=folder / "cert.pem")

        def own() -> Summary:
            client = Client(f"{url}/file/speech.wav", {}, tls=trust, method="GET")
            load = Load(client, lambda text: b"", itertools.repeat(""))
            return harness.closed(load, CONNECTIONS, Limit(seconds=seconds))

        def other() -> float:
            return wrk(f"{url}/file/speech.wav", seconds, script) if shutil.which("wrk") else 0.0

        ours, theirs = harness.alternate(rounds, own, other)
    harness.markdown(
        ("client", "requests/s", "CPU a request, ms"),
        [
            (
                "`maya1-tts bench`",
                harness.spread([one.requests_per_second for one in ours], ".0f"),
                harness.spread([one.client_cpu * one.seconds / one.requests * 1000 for one in ours]),
            ),
            ("wrk", harness.spread(theirs, ".0f") if any(theirs) else "not installed", ""),
        ],
    )
    harness.note(
        f"{CONNECTIONS} TLS connections, {len(body)} bytes each, NGINX on the same machine;",
        f"{rounds} rounds of {seconds} s; median (range).",
    )


if __name__ == "__main__":
    main()
