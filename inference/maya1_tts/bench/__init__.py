"""`maya1-tts bench`: puts load on an OpenAI-compatible speech server and reports what a listener gets."""
