"""What a voice's revision is made of, besides its weights."""

import hashlib
import importlib.metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def sound_revision(*libraries: str) -> str:
    """Changes with these libraries and with the code that has a say in the sound."""
    digest = hashlib.sha256()
    for source in [PACKAGE / "audio.py", PACKAGE / "normalize.py", *sorted(PACKAGE.glob("engines/**/*.py"))]:
        digest.update(source.read_bytes())
    for library in sorted(libraries):
        digest.update(f"{library}=={importlib.metadata.version(library)}".encode())
    return digest.hexdigest()
