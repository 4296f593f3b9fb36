"""The engines, one module or package each. Only the configured one is imported."""

from maya1_tts.config import Settings
from maya1_tts.engine import Engine


def load_engine(settings: Settings) -> Engine:
    """The engine that MAYA1_TTS_ENGINE names. Raises ConfigError when it cannot be loaded."""
    from maya1_tts.engines.onnx_session import Target
    from maya1_tts.engines.onnx_voice import OnnxVoiceEngine

    target = Target(settings.onnx_provider, settings.tensorrt_cache_dir)
    return OnnxVoiceEngine(settings.model_dir, settings.workers, settings.threads, target)
