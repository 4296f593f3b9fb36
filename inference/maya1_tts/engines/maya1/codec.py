"""The decoder half of SNAC at 24 kHz: codes to samples, the same samples each time.

SNAC (Siuzdak 2024, github.com/hubertsiuzdak/snac, MIT) codes 2048 samples as 1 + 2 + 4 codes of three
codebooks. Its decoder multiplies fresh normal noise into the signal after each of its four upsamplings, so
equal codes give other samples in each call, and a window of a stream other samples than the whole. Here the
noise of a frame is read from a fixed table, at a place that the frame's own seven codes give. So noise stays
white within a frame and changes from frame to frame, yet a frame has the same noise wherever it is decoded:
alone, in a window, in a batch or in an exported graph, which needs no input but the codes.
"""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, Snake1d
from snac.vq import VectorQuantize
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maya1_tts.engines.maya1.tokens import SLOTS
from maya1_tts.errors import ConfigError

CONFIG = {
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
"""hubertsiuzdak/snac_24khz, the codec that Maya1 was trained on."""

# The largest prime below 2**18: places in the table spread evenly, and the table is 1 MB in an exported
# graph.
NOISE_PLACES = 262_139


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha. SNAC's own is a scripted function, which cannot be exported everywhere."""

    def __init__(self, alpha: Tensor) -> None:
        super().__init__()
        self.alpha = nn.Parameter(alpha.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).pow(2) / (self.alpha + 1e-9)


class SnacDecoder(nn.Module):
    """codes [B, n], [B, 2n], [B, 4n] (int64, 0..4095) to samples [B, 1, 2048 n] (within [-1, 1])."""

    noise: Tensor
    spread: Tensor

    def __init__(self, snac: SNAC) -> None:
        super().__init__()
        self.quantizer = snac.quantizer
        self.layers = snac.decoder.model
        _fold(self)
        self.upsampling = [int(rate) for rate in snac.decoder_rates]
        noise, spread = fixed_noise(self.upsampling)
        self.register_buffer("noise", torch.from_numpy(noise), persistent=False)
        self.register_buffer("spread", torch.from_numpy(spread), persistent=False)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        levels = zip(self.quantizer.quantizers, (coarse, middle, fine), strict=True)
        x = torch.stack([self._latents(codebook, codes) for codebook, codes in levels]).sum(0)
        batch, frames = coarse.shape
        codes = torch.cat(
            [coarse.unsqueeze(-1), middle.reshape(batch, frames, 2), fine.reshape(batch, frames, 4)], dim=-1
        )
        place = (codes * self.spread[:SLOTS]).sum(-1)
        depth = 0
        for layer in self.layers:
            if not isinstance(layer, DecoderBlock):
                x = layer(x)
                continue
            for part in layer.block:
                if isinstance(part, NoiseBlock):
                    x = x + self._noise(place + self.spread[SLOTS + depth], depth) * part.linear(x)
                else:
                    x = part(x)
            depth += 1
        samples: Tensor = x
        return samples

    def _latents(self, codebook: VectorQuantize, codes: Tensor) -> Tensor:
        """[B, C, 4n] of one codebook. SNAC's own repeat_interleave cannot be exported with a free length."""
        latents: Tensor = codebook.out_proj(codebook.decode_code(codes))
        return latents.unsqueeze(-1).expand(-1, -1, -1, codebook.stride).flatten(-2)

    def _noise(self, place: Tensor, depth: int) -> Tensor:
        """[B, 1, T] normal noise for the signal behind upsampling `depth`, from places [B, n]."""
        per_frame = 4 * int(np.prod(self.upsampling[: depth + 1]))
        steps = torch.arange(per_frame, device=place.device)
        index = (place % NOISE_PLACES).unsqueeze(-1) + steps
        # Not reshape(B, 1, -1), of which PyTorch's exporter to ONNX makes a wrong constant.
        noise: Tensor = self.noise[index].flatten(1).unsqueeze(1)
        return noise


def fixed_noise(upsampling: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The table of noise, [NOISE_PLACES + longest read], and what to multiply a frame's codes and add."""
    random = np.random.default_rng(0)
    longest = 4 * int(np.prod(upsampling))
    noise = random.standard_normal(NOISE_PLACES + longest).astype(np.float32)
    return noise, random.integers(1, NOISE_PLACES, SLOTS + len(upsampling))


def _fold(module: nn.Module) -> None:
    """Weight normalisation becomes plain weights, and each Snake one that can be exported."""
    for name, child in module.named_children():
        if isinstance(child, Snake1d):
            setattr(module, name, Snake(child.alpha))
            continue
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight")
        _fold(child)


def load_decoder(folder: Path) -> SnacDecoder:
    """The decoder from `config.json` and `pytorch_model.bin`, float32 on the CPU, ready for inference.

    Raises ConfigError when they are not those of SNAC at 24 kHz as Maya1 uses it.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        # Sizes may differ (a tiny model is narrower), but what gives tokens their meaning may not.
        for key in ("sampling_rate", "decoder_rates", "codebook_size", "vq_strides", "attn_window_size"):
            if config.get(key) != CONFIG[key]:
                raise ValueError(f"{key!r} is {config.get(key)}, expected {CONFIG[key]}")
        snac = SNAC(**config)
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        snac.load_state_dict(weights)
    except Exception as error:
        raise ConfigError(f"{folder} is not a SNAC codec at 24 kHz: {str(error)[:300]}.") from None
    return SnacDecoder(snac).eval().requires_grad_(False)
