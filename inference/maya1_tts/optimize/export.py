"""SNAC's decoder from torch to ONNX, its noise included: the graph needs no input but the codes."""

import warnings
from pathlib import Path
from typing import Any

import torch

from maya1_tts.engines.maya1.codec import SnacDecoder
from maya1_tts.optimize.subject import SNAC_INPUTS, Feed, snac_subject

OPSET = 17  # what TensorRT 10 and ONNX Runtime 1.26 both know


def export_decoder(decoder: SnacDecoder, target: Path) -> None:
    """Write a graph: audio_codes.0, .1, .2 (int64 [B, n], [B, 2n], [B, 4n]) to audio_values [B, 1, 2048 n].

    The names are those of onnx-community/snac_24khz-ONNX. PyTorch's older exporter does it: the newer one
    needs onnxscript, which nothing else here does.
    """
    example = tuple(torch.from_numpy(codes) for codes in snac_subject(None).samples[0].feed.values())
    axes: dict[str, Any] = {
        name: {0: "batch", 1: f"frames_x{1 << level}"} for level, name in enumerate(SNAC_INPUTS)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one says that this exporter is the older one
        torch.onnx.export(
            decoder,
            example,
            str(target),
            dynamo=False,
            opset_version=OPSET,
            input_names=SNAC_INPUTS,
            output_names=["audio_values"],
            dynamic_axes=axes | {"audio_values": {0: "batch", 2: "samples"}},
        )


def torch_render(decoder: SnacDecoder) -> Any:
    """The decoder in torch, to be compared with: a feed to samples."""

    @torch.inference_mode()
    def render(feed: Feed) -> Any:
        return decoder(*(torch.from_numpy(feed[name]) for name in SNAC_INPUTS)).numpy().reshape(-1)

    return render
