"""Tokens to frames, and frames to samples."""

from pathlib import Path

import pytest
import torch
from maya1_tts.engines.maya1.codec import CONFIG, SnacDecoder, load_decoder
from maya1_tts.engines.maya1.tokens import CODES, FIRST_CODE, SLOTS, BadTokens, FrameReader
from maya1_tts.errors import ConfigError
from snac import SNAC
from torch import Tensor


def tokens_of(*frames: tuple[int, ...]) -> list[int]:
    return [FIRST_CODE + slot * CODES + code for frame in frames for slot, code in enumerate(frame)]


A, B, C = (0,) * 7, (4095,) * 7, (1, 2, 3, 4, 5, 6, 7)


def test_tokens_become_frames_however_they_arrive() -> None:
    tokens = tokens_of(A, B, C)
    reader = FrameReader()
    assert list(reader.read(tokens)) == [A, B, C]
    assert [frame for token in tokens for frame in reader.read([token])] == [A, B, C]
    assert reader.resyncs == 0


@pytest.mark.parametrize("stray", [128_258, FIRST_CODE - 1, FIRST_CODE + SLOTS * CODES, 5, 156_959])
def test_a_token_that_is_no_audio_costs_one_frame(stray: int) -> None:
    tokens = tokens_of(A, B, C)
    tokens.insert(9, stray)
    reader = FrameReader()
    assert list(reader.read(tokens)) == [A, C]
    assert reader.resyncs == 1


@pytest.mark.parametrize("lost", range(7, 14))
def test_a_lost_token_costs_one_frame_and_never_shifts_the_rest(lost: int) -> None:
    tokens = tokens_of(A, B, C, A)
    del tokens[lost]
    reader = FrameReader()
    assert list(reader.read(tokens)) == [A, C, A]
    assert reader.resyncs == 1


def test_a_frame_that_starts_anew_is_taken() -> None:
    reader = FrameReader()
    assert list(reader.read(tokens_of(A)[:3] + tokens_of(B))) == [B]
    assert reader.resyncs == 1


def test_output_without_frames_is_an_error() -> None:
    with pytest.raises(BadTokens, match="71 tokens"):
        list(FrameReader().read([FIRST_CODE + CODES] * 71))
    reader = FrameReader()
    with pytest.raises(BadTokens, match="9 times"):
        list(reader.read([*tokens_of(A), 5] * 9))


def codes(frames: int, batch: int = 1, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, CODES, (batch, frames * k), generator=random) for k in (1, 2, 4)]


def cut(codes: list[Tensor], begin: int, end: int) -> list[Tensor]:
    return [level[:, begin * k : end * k] for level, k in zip(codes, (1, 2, 4), strict=True)]


@pytest.fixture(scope="module")
def decoder(model_dir: Path) -> SnacDecoder:
    return load_decoder(model_dir / "maya1" / "snac")


def test_samples_are_those_of_snac_but_for_the_noise() -> None:
    """Against the snac package itself, with the noise of both switched off."""
    snac = SNAC(**(CONFIG | {"decoder_dim": 32})).eval()
    for module in snac.decoder.modules():
        if type(module).__name__ == "NoiseBlock":
            module.forward = lambda x: x
    wanted = snac.decode(codes(5))
    ours = SnacDecoder(snac).eval()
    ours.noise.zero_()
    assert torch.allclose(ours(*codes(5)), wanted, atol=1e-5)
    assert wanted.std() > 0.01


def test_the_noise_is_normal_and_differs_from_frame_to_frame(decoder: SnacDecoder) -> None:
    place = torch.tensor([[3, 70_000, 262_138]])
    noise = decoder._noise(place, 3).reshape(3, 2048)
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.1


def test_three_frames_of_context_give_the_samples_of_the_whole(decoder: SnacDecoder) -> None:
    whole = decoder(*codes(12))
    assert whole.shape == (1, 1, 12 * 2048)
    for frame in range(12):
        begin, end = max(0, frame - 3), min(12, frame + 4)
        window = decoder(*cut(codes(12), begin, end))
        at = (frame - begin) * 2048
        difference = window[..., at : at + 2048] - whole[..., frame * 2048 : (frame + 1) * 2048]
        assert difference.abs().max() < 2e-6, frame
    window = decoder(*cut(codes(12), 4, 9))  # two frames are too few
    assert (window[..., 2 * 2048 : 3 * 2048] - whole[..., 6 * 2048 : 7 * 2048]).abs().max() > 1e-5


def test_a_batch_has_the_samples_of_each_alone(decoder: SnacDecoder) -> None:
    batch = codes(7, batch=5)
    together = decoder(*batch)
    for row in range(5):
        alone = decoder(*(level[row : row + 1] for level in batch))
        assert (together[row : row + 1] - alone).abs().max() < 2e-6


def test_a_codec_of_another_kind_is_refused(model_dir: Path, tmp_path: Path) -> None:
    source = model_dir / "maya1" / "snac"
    (tmp_path / "pytorch_model.bin").write_bytes((source / "pytorch_model.bin").read_bytes())
    text = (source / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("24000", "44100"))
    with pytest.raises(ConfigError, match="'sampling_rate' is 44100, expected 24000"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    load_decoder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="not a SNAC codec"):
        load_decoder(tmp_path)
