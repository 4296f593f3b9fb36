"""Traces as a collector receives them, and nothing at all where there is none."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from conftest import TEXT, Service, free_port, service_environment, wait_for
from maya1_tts.grpc import speech_pb2, speech_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.openmetrics.parser import text_string_to_metric_families

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"  # the example of the W3C's recommendation


class Collector:
    """Receives OTLP over HTTP, as https://opentelemetry.io/docs/specs/otlp/ has it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(body)
                collector.bodies.append(body)
                collector.spans += [
                    span
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def trace(self, id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == id]

    def finished(self, name: str, id: str = TRACE) -> bool:
        return any(span.name == name for span in self.trace(id))

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        service = Service(
            tmp_path_factory.mktemp("traced"), ENVIRONMENT="development", AUTH="none",
            OTLP_ENDPOINT=collector.url, GRPC_PORT=free_port(),
        )  # fmt: skip
    try:
        yield service.wait_until_ready()
    finally:
        service.stop()


def attributes(span: Span) -> dict[str, object]:
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in span.attributes}


def test_a_request_is_a_trace_without_its_text(traced: Service, collector: Collector) -> None:
    body = {"model": "tts-1", "input": f"Walnuts are brown. {TEXT}", "response_format": "mp3"}
    answer = traced.http.post("/v1/audio/speech", json=body, headers={"traceparent": TRACEPARENT})
    assert answer.status_code == 200
    wait_for(lambda: collector.finished("POST /v1/audio/speech"), "the request's span arrives")
    spans = collector.trace(TRACE)
    (root,) = [span for span in spans if span.parent_span_id.hex() == PARENT]
    assert (root.name, root.kind) == ("POST /v1/audio/speech", Span.SPAN_KIND_SERVER)
    told = attributes(root)
    assert told["http.response.status_code"] == 200
    assert told["maya1.request_id"] == answer.headers["x-request-id"]
    children = sorted(span.name for span in spans if span.parent_span_id == root.span_id)
    assert children == ["admission", "admission", "cache", "encode", "segment", "segment"]
    assert all(b"Walnuts" not in sent and b"brother" not in sent for sent in collector.bodies)
    line = next(line for line in traced.log.splitlines() if answer.headers["x-request-id"] in line)
    assert json.loads(line)["trace_id"] == TRACE


def test_an_exemplar_leads_from_the_metric_to_the_trace(traced: Service) -> None:
    id = TRACE.replace("4bf9", "0001")
    body = {"model": "tts-1", "input": TEXT}
    traced.http.post("/v1/audio/speech", json=body, headers={"traceparent": f"00-{id}-{PARENT}-01"})
    text = traced.http.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    exemplars = [
        sample.exemplar.labels
        for family in text_string_to_metric_families(text)
        if family.name == "maya1_tts_ttfa_seconds"
        for sample in family.samples
        if sample.exemplar
    ]
    assert {"trace_id": id} in exemplars


def test_a_failure_is_marked_without_its_message(traced: Service, collector: Collector) -> None:
    id = TRACE.replace("4bf9", "0002")
    body = {"model": "tts-1", "input": TEXT, "voice": "Pistachio"}
    traced.http.post("/v1/audio/speech", json=body, headers={"traceparent": f"00-{id}-{PARENT}-01"})
    wait_for(lambda: collector.finished("POST /v1/audio/speech", id), "the span arrives")
    (span,) = collector.trace(id)
    told = attributes(span)
    assert (told["http.response.status_code"], told["maya1.code"]) == (404, "voice_not_found")
    assert all(b"Pistachio" not in sent for sent in collector.bodies)


def test_grpc_is_traced_too(traced: Service, collector: Collector) -> None:
    id = TRACE.replace("4bf9", "0003")
    port = traced.environment["MAYA1_TTS_GRPC_PORT"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = speech_pb2.SynthesizeRequest(model="tts-1", input=TEXT)
        metadata = (("traceparent", f"00-{id}-{PARENT}-01"),)
        list(speech_pb2_grpc.SpeechStub(channel).Synthesize(request, metadata=metadata, timeout=60))
    name = "/maya1.tts.v1.Speech/Synthesize"
    wait_for(lambda: collector.finished(name, id), "the call's span arrives")
    (root,) = [span for span in collector.trace(id) if span.name == name]
    assert attributes(root)["rpc.response.status_code"] == "OK"
    assert {span.name for span in collector.trace(id) if span.parent_span_id == root.span_id} >= {"segment"}


def test_probes_are_not_traced(traced: Service, collector: Collector) -> None:
    traced.http.get("/readyz", headers={"traceparent": TRACEPARENT.replace("4bf9", "0004")})
    test_grpc_is_traced_too(
        traced, collector
    )  # spans are sent in order, so that of a probe would be there by now
    assert not collector.trace(TRACE.replace("4bf9", "0004"))


def test_a_collector_that_is_away_harms_nobody(tmp_path: Path) -> None:
    service = Service(
        tmp_path, ENVIRONMENT="development", AUTH="none", OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}"
    )
    try:
        service.wait_until_ready()
        assert service.speak().status_code == 200
        service.process.terminate()
        assert service.process.wait(60) == 0
    finally:
        service.stop()


def test_off_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, maya1_tts.server, maya1_tts.cli, maya1_tts.engines.onnx_voice\n"
        "print({'opentelemetry.sdk.trace', 'opentelemetry.exporter'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=service_environment(), capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
