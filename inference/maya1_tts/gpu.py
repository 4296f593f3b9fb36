"""What NVML tells about the GPUs, as metrics. Where there is no driver there are none."""

import logging
from collections.abc import Callable
from typing import Any

import pynvml
from prometheus_client import Gauge

from maya1_tts.metrics import Metrics

log = logging.getLogger(__name__)


class Gpus:
    def __init__(self, metrics: Metrics) -> None:
        self._handles: list[Any] = []
        # NVML has newer functions for some of these, which driver 535 has not.
        self._reads: list[tuple[Gauge, Callable[[Any], float]]] = [
            (metrics.gpu_memory_used, lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
            (metrics.gpu_memory, lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
            (metrics.gpu_busy, lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
            (
                metrics.gpu_celsius,
                lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            ),
            (metrics.gpu_watts, lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        ]
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError as error:
            log.debug("no GPU metrics: %s", error)

    def refresh(self) -> None:
        """Takes as long as the driver does, and for ever where a GPU has died: to be called in a thread."""
        for index, handle in enumerate(self._handles):
            for gauge, read in self._reads:
                try:
                    gauge.labels(str(index)).set(read(handle))
                except pynvml.NVMLError:  # this GPU cannot tell, or no longer
                    gauge.remove(str(index))
