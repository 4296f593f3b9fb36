"""The model folder: every file is the one that was put there, or the service does not start."""

import shutil
from pathlib import Path

import pytest
from maya1_tts.engines.maya1.folder import open_folder, write_sums
from maya1_tts.engines.maya1.tiny import make_tiny_model
from maya1_tts.errors import ConfigError


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir / "maya1", tmp_path / "maya1"))


def test_a_whole_folder_opens(folder: Path) -> None:
    opened = open_folder(folder)
    assert opened.random_weights
    (folder / ".cache").write_text("a note of a download tool")
    assert open_folder(folder) == opened


def test_one_changed_byte_is_found(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ConfigError, match=r"model\.safetensors has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
    ):
        open_folder(folder)


@pytest.mark.parametrize("name", ["model/config.json", "model/model.safetensors", "snac/pytorch_model.bin"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} cannot be read: No such file"):
        open_folder(folder)


def test_a_list_that_lacks_a_needed_file_is_refused(folder: Path) -> None:
    (folder / "model" / "tokenizer.json").unlink()
    write_sums(folder)
    with pytest.raises(ConfigError, match=r"model/tokenizer\.json is missing from .*SHA256SUMS"):
        open_folder(folder)


def test_a_file_without_a_checksum_is_refused(folder: Path) -> None:
    (folder / "model" / "more.safetensors").write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"more\.safetensors is not in .*SHA256SUMS"):
        open_folder(folder)


@pytest.mark.parametrize("line", ["abc  model/config.json", "{}  ../config.json", "{}  /etc/x"])
def test_a_broken_list_is_refused(folder: Path, line: str) -> None:
    (folder / "SHA256SUMS").write_text(line.format("0" * 64) + "\n")
    with pytest.raises(ConfigError, match="line 1 is broken"):
        open_folder(folder)


def test_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SHA256SUMS cannot be read .*checksum-model"):
        open_folder(tmp_path / "nothing")


def test_a_tiny_model_is_the_same_each_time(model_dir: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "again")
    assert open_folder(tmp_path / "again").revision == open_folder(model_dir / "maya1").revision
    with pytest.raises(ConfigError, match="not empty"):
        make_tiny_model(tmp_path / "again")
