"""The OpenAPI document is true: schemathesis sends what it allows and what it forbids, and checks answers."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
from conftest import Service, token

HERE = Path(__file__).parent


def test_every_answer_is_as_documented(service: Service, tmp_path: Path) -> None:
    bearer = f"Authorization: Bearer {token(scope='speak jobs', sub='schemathesis')}"
    command = [
        Path(sys.executable).with_name("st"), "run", f"{service.url}/openapi.json", "--header", bearer,
        "--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1",
        "--generation-database", "none", "--no-color", "--continue-on-failure",
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(HERE)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout


def test_the_document_names_every_route_and_who_may_use_it(service: Service) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == 13
    for (method, path), operation in operations.items():
        assert ("security" in operation) == path.startswith("/v1/"), (method, path)
    speech = operations["POST", "/v1/audio/speech"]
    body = speech["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["input"]["maxLength"] == 4096
    answers = speech["responses"]["200"]["content"]
    assert {"audio/mpeg", "text/event-stream", "application/json"} <= answers.keys()
