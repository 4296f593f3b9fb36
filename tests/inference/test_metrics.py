"""What the metrics say is what a listener would measure, and what a GPU's driver would tell."""

import asyncio
import ctypes
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pynvml
import pytest
from conftest import TEXT, Service, wait_for
from gate import Running
from maya1_tts import playout
from maya1_tts.gpu import Gpus
from maya1_tts.metrics import TTFA_BUCKETS, Metrics
from maya1_tts.studio import Speech
from prometheus_client.openmetrics.parser import text_string_to_metric_families


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"maya1_tts_{name}", labels)


# Gaps and underruns


def play(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, float]], taking: float = 0.0
) -> tuple[float, float, float]:
    """Pieces by the second they are ready and their seconds of audio, to a client that needs `taking` seconds
    for each, on a clock of the test's own: seconds of gaps, underruns, streams with underruns.
    """
    now = 100.0
    monkeypatch.setattr(playout, "time", SimpleNamespace(perf_counter=lambda: now))
    speech, metrics = SimpleNamespace(seconds=0.0), Metrics()

    async def made() -> AsyncIterator[bytes]:
        nonlocal now
        for ready, seconds in pieces:
            now = max(now, 100.0 + ready)
            speech.seconds += seconds
            yield b"audio"

    async def listen() -> None:
        nonlocal now
        async for _ in playout.measured(made(), cast(Speech, speech), metrics):
            now += taking

    asyncio.run(listen())
    assert value(metrics, "chunk_gap_seconds_count") == len(pieces) - 1
    gaps, underruns, ran_dry = (
        value(metrics, "chunk_gap_seconds_sum"),
        value(metrics, "underruns_total"),
        value(metrics, "streams_total", underrun="yes"),
    )
    assert gaps is not None
    assert underruns is not None
    assert ran_dry is not None
    assert value(metrics, "streams_total", underrun="no") == 1 - ran_dry
    return gaps, underruns, ran_dry


def test_a_stream_in_time_has_gaps_and_no_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, [(1, 2), (2.5, 2), (4.5, 2)]) == (3.5, 0, 0)


def test_a_piece_that_comes_after_the_audio_is_over_is_an_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, [(1, 2), (3.5, 2), (4, 1)]) == (3, 1, 1)
    # The player starts again with the late piece: the next has two seconds from then on, not from the start.
    assert play(monkeypatch, [(1, 2), (4, 2), (5.9, 2), (8.5, 1)]) == (7.5, 2, 1)


def test_bytes_without_sound_cannot_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, [(1, 2), (9, 0)]) == (8, 0, 0)


def test_a_slow_client_is_not_the_services_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, [(1, 2), (2, 2), (3, 2)], taking=10) == (0, 0, 0)


def test_streams_of_every_kind_are_measured(service: Service) -> None:
    def count() -> float:
        return sum(service.metric("streams_total", underrun=underrun) for underrun in ("yes", "no"))

    before = count()
    service.speak(f"One. {TEXT}")
    assert count() == before, "it is not a stream"
    service.speak(f"Two. {TEXT}", stream=True)
    service.speak(f"Three. {TEXT}", stream_format="sse")
    wait_for(lambda: count() == before + 2, "both are counted")
    assert service.metric("chunk_gap_seconds_count") >= 2


# GPUs


class FakeNvml:
    """Stands in for libnvidia-ml.so.1, which only comes with a driver: what the real binding calls in it.

    GPU 0 tells everything. GPU 1 has no power sensor.
    """

    def nvmlInitWithFlags(self, flags: Any) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.contents = self.devices[index.value]
        return 0

    def __init__(self) -> None:
        device = pynvml.struct_c_nvmlDevice_t
        self.devices = [device(), device()]
        self.busy = 75

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 80 << 30, 20 << 30
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu = self.busy
        return 0

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> int:
        celsius._obj.value = 61
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> int:
        if ctypes.addressof(handle.contents) == ctypes.addressof(self.devices[1]):
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        milliwatts._obj.value = 312_500
        return 0


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(pynvml, "nvmlLib", fake)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return fake


def test_gpus(nvml: FakeNvml) -> None:
    metrics = Metrics()
    gpus = Gpus(metrics)
    gpus.refresh()
    assert value(metrics, "gpu_memory_bytes", gpu="0") == 80 * 1024**3
    assert value(metrics, "gpu_memory_used_bytes", gpu="1") == 20 * 1024**3
    assert value(metrics, "gpu_utilization_ratio", gpu="0") == 0.75
    assert value(metrics, "gpu_temperature_celsius", gpu="0") == 61
    assert value(metrics, "gpu_power_watts", gpu="0") == 312.5
    assert value(metrics, "gpu_power_watts", gpu="1") is None
    nvml.busy = 10
    gpus.refresh()
    assert value(metrics, "gpu_utilization_ratio", gpu="0") == 0.1


def test_without_a_driver_there_are_no_gpu_metrics(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level("INFO"):
        Gpus(metrics).refresh()
    assert value(metrics, "gpu_memory_bytes", gpu="0") is None
    assert not caplog.records


# Exposition


def test_the_objective_is_an_edge_of_the_buckets() -> None:
    assert 0.2 in TTFA_BUCKETS
    assert list(TTFA_BUCKETS) == sorted(TTFA_BUCKETS)


def test_the_exposition_is_openmetrics_for_whoever_asks(service: Service) -> None:
    service.speak()
    plain = service.http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert "process_resident_memory_bytes" in plain.text
    assert "maya1_tts_gpu_memory_bytes{" not in plain.text
    asked = service.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(asked.text)}
    assert families["maya1_tts_ttfa_seconds"].type == "histogram"
    assert families["process_cpu_seconds"].samples[0].value > 0


def test_time_in_the_queue_is_measured() -> None:
    running = Running().get_ready()
    try:
        before = running.metric("queue_seconds_count")
        running.engine.permits.release(2)
        assert running.http.send(running.request("one two")).status_code == 200
        assert running.metric("queue_seconds_count") == before + 1
    finally:
        running.stop()
