"""Files that must never be half written, nor readable by others for a moment."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes, private: bool = False) -> None:
    """Put content into place whole or not at all. private: for its owner alone."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "wb") as file:
        file.write(content)
    new.replace(path)
