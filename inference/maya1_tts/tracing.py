"""OpenTelemetry traces, where OTLP_ENDPOINT says where to send them. Off, nothing of it is even imported.

Spans carry ids, sizes and outcomes, never texts. Sampling follows OTEL_TRACES_SAMPLER, as everywhere.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from maya1_tts import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

FLUSH_MILLISECONDS = 2000
_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None  # None: off
_off = contextlib.nullcontext()


def start(endpoint: str) -> None:
    """Send spans to this collector from now on. endpoint: OTLP/HTTP, without the path /v1/traces."""
    global _provider, _tracer
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "maya1-tts", "service.version": __version__})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("maya1_tts", __version__)


def stop() -> None:
    """Send what is left, without waiting for long."""
    if _provider:
        _provider.force_flush(FLUSH_MILLISECONDS)


def span(name: str, **attributes: Any) -> contextlib.AbstractContextManager[Any]:
    """A part of what is under way."""
    return _span(_tracer, name, attributes=attributes) if _tracer else _off


@contextlib.contextmanager
def _span(tracer: "Tracer", name: str, **options: Any) -> "Iterator[Span]":
    from opentelemetry.trace import StatusCode

    # What OpenTelemetry would note of an exception is its message, in which a text may stand.
    options |= {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, **options) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


@contextlib.contextmanager
def entry(name: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A request that comes in, as part of the trace that its `traceparent` names (W3C Trace Context).

    What the block puts into the dictionary becomes the span's attributes, and `name` its name.
    """
    told: dict[str, Any] = {}
    if _tracer is None:
        yield told
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    with _span(_tracer, name, context=parent, kind=SpanKind.SERVER) as current:
        try:
            yield told
        finally:
            current.update_name(told.pop("name", name))
            current.set_attributes(told)


def trace_id() -> str | None:
    """Of the request under way; None where it is not traced."""
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.trace_flags.sampled else None


def exemplar() -> dict[str, str] | None:
    """For a metric that is observed within a request: leads from a bucket to a trace."""
    id = trace_id()
    return {"trace_id": id} if id else None
