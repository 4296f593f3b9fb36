"""maya1-tts: an OpenAI-compatible speech service."""

import os

# The models that run through numpy are tiny: more BLAS threads make them several times slower, not faster.
# It has to be said before numpy is imported anywhere.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
