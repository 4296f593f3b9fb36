"""The options of `maya1-tts optimize`, apart from its work, which imports half the world."""

import argparse
from pathlib import Path


def add_optimize_options(command: argparse.ArgumentParser) -> None:
    steps = command.add_subparsers(dest="step", required=True)
    for step, text in {
        "export": "SNAC's decoder from torch to ONNX",
        "fp16": "16-bit floats",
        "int8": "8-bit convolutions, calibrated",
        "tensorrt": "an engine for this machine's GPU",
        "run": "all of these in this order",
    }.items():
        parser = steps.add_parser(step, help=text)
        kinds = "folder of SNAC" if step == "export" else "ONNX graph"
        if step == "run":
            kinds = "folder of SNAC, or ONNX graph of it or of a Piper voice"
        parser.add_argument("source", type=Path, help=kinds)
        parser.add_argument("folder", type=Path, help="where results and the report go")
        parser.add_argument(
            "--data",
            type=Path,
            help="sentences (text, one a line) or codes (.npy, [frames, 7]) to judge by",
        )
        parser.add_argument("--runs", type=int, default=5, help="how often each of three samples is timed")
        parser.add_argument("--min-snr", type=float, metavar="DB", help="instead of the step's own bound")
        parser.add_argument("--max-log-mel", type=float, metavar="DB")
        parser.add_argument("--max-wer-rise", type=float, default=0.05)
        if step in ("int8", "run"):
            parser.add_argument(
                "--keep-float", action="append", metavar="NAME", help="leave nodes whose names begin so"
            )
        if step == "int8":
            parser.add_argument("--runtime", choices=["cpu", "tensorrt"], default="cpu", help="whose kernels")
