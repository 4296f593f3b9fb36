"""Prometheus on the host scrapes the service, and one request shows in the metrics that operators look at."""

import json
from urllib.parse import quote

import pytest

from tests.e2e.lab import FIRST, Client, Lab, eventually


def query(lab: Lab, expression: str) -> list[dict[str, object]]:
    answer = json.loads(
        lab.on(FIRST, f"curl -s 'http://127.0.0.1:9090/api/v1/query?query={quote(expression)}'")
    )
    result: list[dict[str, object]] = answer["data"]["result"]
    return result


def test_every_target_is_up(client: Client, lab: Lab) -> None:
    eventually(lambda: len(query(lab, "up == 1")) >= 4 and not query(lab, "up == 0"), "all targets are up")
    jobs = {entry["metric"]["job"] for entry in query(lab, "up")}  # type: ignore[index]
    assert jobs == {"maya1_tts", "node", "prometheus", "alertmanager"}


@pytest.mark.parametrize(
    "expression",
    [
        'sum(maya1_tts_requests_total{status="200"}) > 0',
        "sum(maya1_tts_ttfa_seconds_count) > 0",
        "sum(maya1_tts_rtf_count) > 0",
        "sum(maya1_tts_audio_seconds_total) > 0",
        'sum(maya1_tts_cache_requests_total{result="miss"}) > 0',
        "maya1_tts_cache_up == 1",
        "maya1_tts_queue_limit > 0",
        "maya1_tts_queue_depth >= 0",
    ],
)
def test_one_request_shows(client: Client, lab: Lab, expression: str) -> None:
    assert client.speak(f"A request that is counted for {len(expression)}.").status_code == 200
    eventually(lambda: bool(query(lab, expression)), expression)
