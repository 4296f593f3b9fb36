"""The folder that holds a Maya1: what must be in it, and that it is what was put there.

    maya1/
      SHA256SUMS        one line for each file below: the output of `sha256sum`
      model/            config.json, *.safetensors, tokenizer.json
      snac/             config.json, pytorch_model.bin, and decoder_model.onnx for the ONNX vocoder

Nothing is ever fetched: a model that is not here is an error at the start.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from maya1_tts.errors import ConfigError

SUMS = "SHA256SUMS"
NEEDED = ("model/config.json", "model/tokenizer.json")  # what else it needs depends on the settings
RANDOM_WEIGHTS = "maya1_tts_random_weights"
"""The key in model/config.json that marks a tiny model for tests."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose every file has the checksum that it should. `revision` changes with any of them."""

    path: Path
    revision: str
    random_weights: bool

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def snac(self) -> Path:
        return self.path / "snac"


def open_folder(path: Path) -> ModelFolder:
    """Check every file. Raises ConfigError that names the first file at fault and what is expected of it.

    Hidden files are passed over: tools leave notes of their own there, and nothing reads them.
    """
    sums = path / SUMS
    try:
        text = sums.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{sums} cannot be read ({error}); expected: a checksum of each file of a Maya1 model, as "
            "`maya1-tts checksum-model` writes it."
        ) from None
    expected = _parse(text, sums)
    for name in NEEDED:
        if name not in expected:
            raise ConfigError(f"{path / name} is missing from {sums}; expected: a line with its sha256.")
    for name, digest in expected.items():
        file = path / name
        try:
            found = sha256(file)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}; {SUMS} lists it.") from None
        if found != digest:
            raise ConfigError(f"{file} has sha256 {found}, expected {digest} as {SUMS} says.")
    for name in _files(path):
        if name not in expected:
            raise ConfigError(f"{path / name} is not in {sums}; expected: only files with a checksum.")
    try:
        config = json.loads((path / "model" / "config.json").read_bytes())
        random_weights = bool(config.get(RANDOM_WEIGHTS, False))
    except (ValueError, AttributeError):
        raise ConfigError(f"{path / 'model' / 'config.json'} is not a JSON object.") from None
    return ModelFolder(path, hashlib.sha256(text.encode()).hexdigest(), random_weights)


def write_sums(path: Path) -> None:
    """Write SHA256SUMS for all that lies in the folder."""
    lines = [f"{sha256(path / name)}  {name}\n" for name in _files(path)]
    (path / SUMS).write_text("".join(lines))


def sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _parse(text: str, sums: Path) -> dict[str, str]:
    expected = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(\S.*)", line)
        if match is None or match[2].startswith("/") or ".." in Path(match[2]).parts:
            raise ConfigError(
                f"{sums}, line {number} is broken; expected: a sha256, two spaces, "
                "and a path inside the folder."
            )
        expected[match[2]] = match[1]
    return expected


def _files(path: Path) -> list[str]:
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(
        name.as_posix()
        for name in names
        if name.as_posix() != SUMS and not any(part.startswith(".") for part in name.parts)
    )
