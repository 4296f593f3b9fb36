"""maya1-tts: an OpenAI-compatible speech service."""

__version__ = "0.1.0"
