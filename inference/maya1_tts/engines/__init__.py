"""The engines, one module or package each. Only the configured one is imported."""

from maya1_tts.config import Settings
from maya1_tts.engine import Engine
from maya1_tts.metrics import Metrics


def load_engine(settings: Settings, metrics: Metrics | None = None) -> Engine:
    """The engine that MAYA1_TTS_ENGINE names. Raises ConfigError when it cannot be loaded."""
    if settings.engine == "maya1":
        from maya1_tts.engines.maya1.engine import Maya1Engine

        return Maya1Engine(settings, metrics or Metrics())
    from maya1_tts.engines.onnx_session import Target
    from maya1_tts.engines.onnx_voice import OnnxVoiceEngine

    target = Target(settings.onnx_provider, settings.tensorrt_cache_dir)
    return OnnxVoiceEngine(settings.model_dir, settings.workers, settings.threads, target)
