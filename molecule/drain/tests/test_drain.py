"""Nobody is cut off, nobody new is let in, and a host stays as it was put.

The gateway is the real one; the service behind it is a stand-in that streams slowly (../gateway/upstream.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Converge, said
from testinfra.host import Host

Ask = Callable[..., requests.Response]
Run = subprocess.CompletedProcess[str]
MARK = "/var/lib/maya1/drained.json"


@pytest.fixture
def ask(address: str, lab_state: Path) -> Ask:
    """Send a request to the gateway on a connection of its own."""
    authority = str(lab_state / "authority" / "ca.pem")

    def send(path: str, **options: Any) -> requests.Response:
        return requests.get(f"https://{address}{path}", verify=authority, timeout=60, **options)

    return send


@pytest.fixture
def stream(ask: Ask) -> Iterator[Callable[[int], Future[bytes]]]:
    """Begin an answer of so many pieces, two seconds each; hand back what will be heard."""
    with ThreadPoolExecutor() as listeners:

        def begin(pieces: int) -> Future[bytes]:
            answer = ask(f"/v1/slow?pieces={pieces}", stream=True)
            assert answer.status_code == 200
            return listeners.submit(lambda: b"".join(answer.iter_content(None)))

        yield begin


@pytest.fixture
def serve(converge: Converge) -> Callable[[], None]:
    def undrained() -> None:
        run = converge(drain_state="serving", drain_reason="")
        assert run.returncode == 0, run.stdout

    return undrained


@pytest.fixture
def serving(serve: Callable[[], None]) -> Iterator[None]:
    """A host that serves, for a test that leaves it as it likes."""
    serve()
    yield
    serve()


def turned_away(answer: requests.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert answer.json()["error"]["code"] == "draining"
    assert int(answer.headers["Retry-After"]) >= 1
    assert "max-age=63072000" in answer.headers["Strict-Transport-Security"]
    return True


# --- the host as it was converged: drained ------------------------------------------------------------------


def test_a_drained_host_turns_everything_new_away_and_can_be_watched(host: Host, ask: Ask) -> None:
    # As balancers see it, and as clients do.
    for path in ("/readyz", "/v1/models", "/v1/slow", "/v1/audio/speech/ws", "/", "/openapi.json"):
        assert turned_away(ask(path)), path
    assert ask("/livez").status_code == 200
    assert host.check_output("curl -sk -o /dev/null -w %{http_code} https://127.0.0.1/metrics") == "200"
    node = host.check_output("curl -sk https://127.0.0.1/metrics/node")
    (since,) = [line.split()[1] for line in node.splitlines() if line.startswith("maya1_drained_since")]
    assert float(since) > 1_700_000_000


def test_it_says_why_and_since_when(host: Host) -> None:
    mark = json.loads(host.file(MARK).content_string)
    assert mark["reason"] == "test"
    assert mark["by"]
    assert host.check_output(f"date -d {mark['since']} +%Y") >= "2025"


def test_it_stays_drained_when_the_gateway_starts_anew(host: Host, ask: Ask) -> None:
    host.check_output("systemctl restart nginx")
    assert turned_away(ask("/v1/models"))


def test_how_many_requests_run_is_nobody_elses_business(ask: Ask) -> None:
    assert ask("/gateway/status").status_code == 403


# --- putting it to and from ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("serving")
def test_a_running_stream_ends_whole_while_new_requests_are_turned_away(
    ask: Ask, stream: Callable[[int], Future[bytes]], converge: Converge
) -> None:
    heard = stream(12)
    with ThreadPoolExecutor() as operator:
        drained = operator.submit(converge)
        while not turned_away(ask("/v1/models")):
            assert not heard.done()
        assert not heard.done()
        assert not drained.done()
        assert drained.result().returncode == 0, drained.result().stdout
    # It did not come back before the stream had ended; the client has its last bytes about now.
    assert heard.result(timeout=1) == b"first" + 11 * b"second"


@pytest.mark.usefixtures("serving")
def test_where_streams_do_not_end_the_host_serves_again(
    host: Host, ask: Ask, stream: Callable[[int], Future[bytes]], converge: Converge
) -> None:
    heard = stream(10)
    run = converge(drain_timeout_seconds=1)
    assert run.returncode != 0
    assert "still being sent after 1 seconds. It serves again" in said(run)
    assert "drain_force: true" in said(run)
    assert ask("/readyz").status_code == 200
    assert not host.file(MARK).exists
    assert len(heard.result()) == len(b"first") + 9 * len(b"second")


@pytest.mark.usefixtures("serving")
def test_a_host_that_was_drained_before_is_not_put_back_by_a_failure(
    host: Host, ask: Ask, stream: Callable[[int], Future[bytes]], converge: Converge
) -> None:
    heard = stream(10)
    host.check_output(f"echo '{json.dumps({'by': 'me', 'reason': 'disk', 'since': 'today'})}' > {MARK}")
    run = converge(drain_timeout_seconds=1)
    assert run.returncode != 0
    assert "stays drained, as it was before" in said(run)
    assert turned_away(ask("/readyz"))
    assert not heard.done()


@pytest.mark.usefixtures("serving")
def test_force_goes_on_and_says_what_it_cuts_off(
    ask: Ask, stream: Callable[[int], Future[bytes]], converge: Converge
) -> None:
    heard = stream(10)
    run = converge(drain_timeout_seconds=1, drain_force=True)
    assert run.returncode == 0, run.stdout
    assert "answers are still being sent after 1 seconds" in said(run)
    assert turned_away(ask("/readyz"))
    assert not heard.done()


@pytest.mark.usefixtures("serving")
def test_only_what_was_drained_for_a_reason_is_put_back_for_it(
    host: Host, ask: Ask, converge: Converge
) -> None:
    assert converge(drain_reason="disk").returncode == 0
    again = converge(drain_reason="upgrade")
    assert again.returncode == 0
    assert "(disk)" in said(again)
    assert json.loads(host.file(MARK).content_string)["reason"] == "disk"
    kept = converge(drain_state="serving", drain_reason="upgrade")
    assert kept.returncode == 0
    assert "stays drained, as it was before" in said(kept)
    assert turned_away(ask("/readyz"))
    assert converge(drain_state="serving", drain_reason="disk").returncode == 0
    assert ask("/readyz").status_code == 200
    assert "maya1_drained_since_seconds 0\n" in host.check_output("curl -sk https://127.0.0.1/metrics/node")


def test_check_mode_changes_nothing(ask: Ask, converge: Converge, serve: Callable[[], None]) -> None:
    serve()
    assert converge(check=True).returncode == 0
    assert ask("/readyz").status_code == 200
    assert converge().returncode == 0
    assert converge(check=True, drain_state="serving", drain_reason="").returncode == 0
    assert turned_away(ask("/readyz"))
    serve()


@pytest.mark.usefixtures("serving")
def test_a_gateway_that_does_not_know_of_draining_is_no_drained_host(
    host: Host, ask: Ask, converge: Converge
) -> None:
    """As a host has it that was configured before there was this role."""
    host.check_output("cp /etc/nginx/nginx.conf /root && sed -i /drained.json/d /etc/nginx/nginx.conf")
    host.check_output("systemctl reload nginx")
    try:
        run = converge()
        assert run.returncode != 0
        assert "answers 200 instead of turning requests away" in said(run)
        assert "provision --tags gateway" in said(run)
        assert not host.file(MARK).exists
    finally:
        host.check_output("mv /root/nginx.conf /etc/nginx/nginx.conf && systemctl reload nginx")


@pytest.mark.usefixtures("serving")
def test_without_a_gateway_nobody_is_waited_for(host: Host, ask: Ask, converge: Converge) -> None:
    host.check_output("systemctl stop nginx")
    try:
        assert converge().returncode == 0
    finally:
        host.check_output("systemctl start nginx")
    assert turned_away(ask("/readyz"))


def test_a_state_that_does_not_exist_is_refused(converge: Converge) -> None:
    run = converge(drain_state="asleep")
    assert run.returncode != 0
    assert "drained, serving" in said(run)
