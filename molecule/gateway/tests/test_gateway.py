"""What a client meets: modern TLS alone, clear answers in JSON, bounds, and audio as it is spoken."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Converge
from testinfra.host import Host

Ask = Callable[..., requests.Response]


@pytest.fixture
def ask(address: str, lab_state: Path) -> Iterator[Ask]:
    """Send a request to the gateway, as a client that trusts the lab's authority."""
    authority = str(lab_state / "authority" / "ca.pem")
    with requests.Session() as session:

        def send(path: str, method: str = "GET", scheme: str = "https", **options: Any) -> requests.Response:
            url = f"{scheme}://{address}{path}"
            return session.request(
                method, url, verify=authority, allow_redirects=False, timeout=10, **options
            )

        yield send


@pytest.fixture
def no_upstream(host: Host) -> Iterator[None]:
    host.check_output("systemctl stop upstream")
    yield
    host.check_output(
        "systemctl reset-failed upstream 2>/dev/null; systemd-run --unit upstream /opt/upstream.py"
    )
    host.check_output(
        "timeout 10 sh -c 'until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.2; done'"
    )


def code(answer: requests.Response) -> str:
    """The code of an error, as OpenAI's clients find it."""
    assert answer.headers["Content-Type"] == "application/json"
    assert "max-age=63072000" in answer.headers["Strict-Transport-Security"]
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return str(error["code"])


@pytest.mark.parametrize(
    ("version", "accepted"), [("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)]
)
def test_tls_versions(address: str, lab_state: Path, version: str, accepted: bool) -> None:
    # Security level 0, so that the client itself would speak the old versions.
    client = subprocess.run(
        ["openssl", "s_client", f"-{version}", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"{address}:443",
         "-CAfile", lab_state / "authority" / "ca.pem", "-verify_return_error", "-verify_ip", address],
        input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (client.returncode == 0) is accepted
    if not accepted:
        assert "alert protocol version" in client.stderr


def test_no_weak_cipher(address: str) -> None:
    client = subprocess.run(
        ["openssl", "s_client", "-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0",
         "-connect", f"{address}:443"],
        input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert client.returncode != 0
    assert "handshake failure" in client.stderr


def test_plain_http_is_redirected(ask: Ask, address: str) -> None:
    answer = ask("/v1/audio/speech?x=1", method="POST", scheme="http")
    # 308 keeps method and body.
    assert (answer.status_code, answer.headers["Location"]) == (308, f"https://{address}/v1/audio/speech?x=1")


def test_requests_reach_the_service(ask: Ask) -> None:
    answer = ask("/v1/models", headers={"X-Forwarded-For": "192.0.2.1", "Authorization": "Bearer token"})
    assert "max-age=63072000" in answer.headers["Strict-Transport-Security"]
    assert answer.headers["Server"] == "nginx"
    seen = answer.json()["headers"]
    assert seen["X-Forwarded-Proto"] == "https"
    assert seen["Authorization"] == "Bearer token"
    assert len(seen["X-Request-Id"]) == 32
    # A client cannot say who it is: its own header is replaced.
    assert seen["X-Forwarded-For"].startswith("172.29.")
    for path in ("/livez", "/readyz", "/", "/openapi.json"):
        assert ask(path).json()["path"] == path


def test_only_one_path_is_a_websocket(ask: Ask) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "h2c"}
    seen = ask("/v1/audio/speech/ws", headers=upgrade).json()["headers"]
    assert (seen["Connection"], seen["Upgrade"]) == ("upgrade", "websocket")
    assert (seen["X-Forwarded-Proto"], len(seen["X-Request-Id"])) == ("https", 32)
    assert "Upgrade" not in ask("/v1/models", headers=upgrade).json()["headers"]


def test_audio_arrives_as_it_is_spoken(ask: Ask) -> None:
    started = time.monotonic()
    with ask("/v1/slow", stream=True) as answer:
        assert next(answer.iter_content(None)) == b"first"
        assert time.monotonic() - started < 1.5


def test_unknown_path(ask: Ask) -> None:
    for path in ("/docs", "/admin", "/errors/not_found"):
        answer = ask(path)
        assert (answer.status_code, code(answer)) == (404, "not_found"), path


def test_too_large_a_body(ask: Ask) -> None:
    answer = ask("/v1/audio/speech", method="POST", data=b"x" * 70_000)
    assert (answer.status_code, code(answer)) == (413, "body_too_large")


def test_too_long_an_address(ask: Ask) -> None:
    answer = ask("/v1/audio/speech?input=" + "x" * 9000)
    assert (answer.status_code, code(answer)) == (414, "uri_too_long")


def test_too_many_requests(ask: Ask) -> None:
    answers = [ask("/v1/models") for _ in range(60)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert answers[0].status_code == 200
    assert refused
    assert code(refused[0]) == "rate_limit_exceeded"
    assert int(refused[0].headers["Retry-After"]) >= 1
    # Probes of load balancers are not counted.
    assert {ask("/readyz").status_code for _ in range(40)} == {200}
    time.sleep(3)


def test_a_route_has_a_budget_of_its_own(ask: Ask, converge: Converge) -> None:
    jobs = {
        "path": "/v1/audio/jobs",
        "requests_per_second": 1,
        "burst": 2,
        "connections": 5,
        "max_body": "1k",
    }
    assert converge(gateway_routes=[jobs]).returncode == 0
    try:
        answers = [ask(f"/v1/audio/jobs/{number}") for number in range(8)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        assert refused
        assert "at most 1 a second and 5 at a time" in refused[0].json()["error"]["message"]
        assert {ask("/v1/models").status_code for _ in range(8)} == {200}
        assert ask("/v1/models", method="POST", data=b"x" * 2000).status_code != 413
        time.sleep(3)  # until the budget is there again
        assert code(ask("/v1/audio/jobs", method="POST", data=b"x" * 2000)) == "body_too_large"
    finally:
        assert converge().returncode == 0


def test_a_budget_for_no_path_of_the_api_is_refused(converge: Converge) -> None:
    wrong = {"path": "/metrics", "requests_per_second": 1, "burst": 2, "connections": 5}
    run = converge(gateway_routes=[wrong])
    assert run.returncode != 0
    assert "allowed is each path once, one that begins with /v1/" in run.stdout


@pytest.mark.usefixtures("no_upstream")
def test_service_is_down(ask: Ask) -> None:
    answer = ask("/v1/models")
    assert (answer.status_code, code(answer)) == (503, "service_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("request_line", ["GET /v1/models HTTP/1.1", "NONSENSE", "TRACE /v1/models HTTP/1.0"])
def test_nonsense_is_answered_in_json(address: str, lab_state: Path, request_line: str) -> None:
    client = subprocess.run(
        ["openssl", "s_client", "-quiet", "-connect", f"{address}:443",
         "-CAfile", lab_state / "authority" / "ca.pem"],
        input=f"{request_line}\r\n\r\n".encode(), capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    head, _, body = client.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_metrics_are_for_monitoring_alone(host: Host, ask: Ask, converge: Converge) -> None:
    # A path that differs only in form must not get around it.
    for path in (
        "/metrics",
        "/metrics/node",
        "/metrics/gpu",
        "//metrics",
        "/v1/../metrics",
        "/%6detrics",
        "/v1/%2e%2e/metrics",
        "/gateway/status",
    ):
        answer = ask(path)
        assert (answer.status_code, code(answer)) == (403, "forbidden"), path
    assert host.check_output("curl -sk -o /dev/null -w %{http_code} https://127.0.0.1/metrics") == "200"
    assert converge(gateway_metrics_allow=["172.29.0.0/16"]).returncode == 0
    assert ask("/metrics").json()["path"] == "/metrics"
    assert converge().returncode == 0
    assert ask("/metrics").status_code == 403


def test_a_broken_configuration_is_refused_and_the_good_one_kept(
    host: Host, ask: Ask, converge: Converge
) -> None:
    before = host.file("/etc/nginx/nginx.conf").sha256sum
    run = converge(gateway_max_body="a lot")
    assert run.returncode != 0
    assert "client_max_body_size" in run.stdout
    assert host.file("/etc/nginx/nginx.conf").sha256sum == before
    assert ask("/v1/models").status_code == 200


def test_comes_back_after_a_kill(host: Host, ask: Ask) -> None:
    host.check_output("systemctl kill --signal=KILL nginx")
    host.check_output(
        "timeout 15 sh -c 'until curl -sk -o /dev/null https://127.0.0.1/livez; do sleep 0.2; done'"
    )
    assert ask("/livez").status_code == 200


def test_nothing_of_it_runs_as_root(host: Host) -> None:
    host.check_output("systemd-analyze security --threshold=20 nginx.service")
    users = set(host.check_output("ps -o user= -C nginx").split())
    assert users == {"www-data"}


def test_comes_back_where_a_test_by_hand_took_its_files(host: Host, ask: Ask) -> None:
    host.check_output("systemctl stop nginx && rm -f /var/log/nginx/error.log && nginx -t -q")
    assert host.file("/var/log/nginx/error.log").user == "root"
    host.check_output("systemctl start nginx")
    assert ask("/v1/models").status_code == 200


def test_an_upgrade_of_nginx_brings_the_new_program_without_a_gap(host: Host, ask: Ask) -> None:
    before = host.file("/run/nginx/nginx.pid").content_string
    host.check_output("apt-get install --reinstall -qq -y nginx")
    assert host.file("/run/nginx/nginx.pid").content_string != before
    assert ask("/v1/models").status_code == 200
    assert host.service("nginx").is_running


def test_logs_are_rotated_and_written_to(host: Host, ask: Ask) -> None:
    host.check_output("logrotate --force /etc/logrotate.d/nginx")
    ask("/v1/models")
    assert '"path":"/v1/models"' in host.file("/var/log/nginx/access.log").content_string
    assert host.file("/var/log/nginx/access.log.1").exists


def test_log_is_json_and_names_no_token(host: Host, ask: Ask) -> None:
    ask("/v1/models?secret=1", headers={"Authorization": "Bearer token"})
    lines = host.file("/var/log/nginx/access.log").content_string.splitlines()
    assert json.loads(lines[-1])["path"] == "/v1/models"
    assert "Bearer" not in "\n".join(lines)
    # What was refused is logged as it was asked for.
    ask("/wp-login.php?secret=1")
    last = json.loads(host.file("/var/log/nginx/access.log").content_string.splitlines()[-1])
    assert (last["path"], last["status"]) == ("/wp-login.php", 404)


# --- who asks -----------------------------------------------------------------------------------------------


@pytest.fixture
def behind_a_proxy(converge: Converge) -> Iterator[None]:
    """This machine is a proxy that the gateway trusts."""
    assert converge(gateway_trusted_proxies=["172.29.0.0/16"]).returncode == 0
    yield
    assert converge().returncode == 0


@pytest.mark.usefixtures("behind_a_proxy")
def test_a_trusted_proxy_says_who_asks_and_limits_count_that_address(ask: Ask) -> None:
    def statuses(clients: list[str]) -> set[int]:
        return {ask("/v1/models", headers={"X-Forwarded-For": client}).status_code for client in clients}

    # What the client itself wrote stands before what the proxy added, and is not believed.
    seen = ask("/v1/models", headers={"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}).json()["headers"]
    assert seen["X-Forwarded-For"] == "203.0.113.9"
    assert ask("/metrics", headers={"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}).status_code == 403
    assert statuses([f"198.51.100.{number}" for number in range(60)]) == {200}
    assert 429 in statuses(["192.0.2.1"] * 60)
    # A client of IPv6 has a whole /64.
    assert 429 in statuses([f"2001:db8::{number:x}" for number in range(1, 61)])
    assert 429 in statuses([f"2001:db8:1:2:3:4:5:{number:x}" for number in range(1, 61)])
    assert statuses([f"2001:db8:2:{number:x}::1" for number in range(1, 61)]) == {200}


def test_a_canary_gets_its_share_while_it_is_there(host: Host, ask: Ask, converge: Converge) -> None:
    def ports() -> set[int]:
        answers = []
        for _ in range(20):
            answers.append(ask("/v1/models"))
            time.sleep(0.1)
        assert {answer.status_code for answer in answers} == {200}
        return {answer.json()["port"] for answer in answers}

    host.check_output("systemd-run --unit canary /opt/upstream.py 8001")
    canary = {"gateway_canary_upstream": "127.0.0.1:8001", "gateway_canary_percent": 50}
    assert converge(**canary).returncode == 0
    with_canary = ports()
    host.check_output("systemctl stop canary")
    without = ports()
    refused = converge(**canary | {"gateway_canary_percent": 100})
    assert converge().returncode == 0
    assert with_canary == {8000, 8001}
    assert without == {8000}
    assert refused.returncode != 0
    assert "gateway_canary_percent is 100; it must be from 0 to 99" in refused.stdout


# --- ill will -----------------------------------------------------------------------------------------------


@pytest.fixture
def connect(address: str, lab_state: Path) -> Iterator[Callable[[], ssl.SSLSocket]]:
    context = ssl.create_default_context(cafile=str(lab_state / "authority" / "ca.pem"))
    opened: list[ssl.SSLSocket] = []

    def connection() -> ssl.SSLSocket:
        raw = socket.create_connection((address, 443), timeout=30)
        opened.append(context.wrap_socket(raw, server_hostname=address))
        return opened[-1]

    yield connection
    for one in opened:
        one.close()


def everything(connection: ssl.SSLSocket) -> bytes:
    """What comes until the other side closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 44\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Content-Length: +4\r\n",
    ],
)
def test_a_second_request_cannot_hide_in_a_body(connect: Callable[[], ssl.SSLSocket], headers: bytes) -> None:
    """Two parties that disagree where a request ends would see another second request."""
    connection = connect()
    connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n0\r\n\r\n" + HIDDEN)
    answer = everything(connection)
    assert answer.split()[1] in (b"400", b"501")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("size", [40_000, 400_000])
def test_too_large_headers_are_refused(connect: Callable[[], ssl.SSLSocket], size: int) -> None:
    connection = connect()
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
    with contextlib.suppress(OSError):  # it need not read all of them
        for _ in range(size // 5000):
            connection.sendall(b"X-Filler: " + b"x" * 5000 + b"\r\n")
        connection.sendall(b"\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert everything(connection).startswith(b"HTTP/1.1 400")


def test_slow_clients_neither_hinder_others_nor_stay(ask: Ask, connect: Callable[[], ssl.SSLSocket]) -> None:
    slow = [connect() for _ in range(100)]
    for connection in slow:
        connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nX: ")
    assert ask("/v1/models").status_code == 200
    for connection in slow:
        # Sends nothing more, and is sent away.
        with contextlib.suppress(ConnectionResetError):
            everything(connection)
    assert ask("/v1/models").status_code == 200
