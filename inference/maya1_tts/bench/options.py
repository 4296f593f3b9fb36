"""The options of `maya1-tts bench`. Imports little: every call of `maya1-tts` reads them."""

import argparse
import re
from pathlib import Path

EXIT_CODES = """\
exit codes: 0 every request was answered with audio; 1 some failed (the report is written all the same);
2 wrong options or files; 3 the server gave no audio at all, so nothing was measured.
"""


def _duration(text: str) -> float:
    """Seconds, from `200ms`, `1.5s` or `2m`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a length of time such as 200ms, 10s or 2m")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2]]


def _url(text: str) -> str:
    """The address of the speech route: a base URL gets OpenAI's path added."""
    match = re.fullmatch(r"(https?://[^/?#@]+)(/[^?#]*)?(\?[^#]*)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a URL such as https://host:8443")
    path = (match[2] or "").rstrip("/")
    if not path.endswith("/audio/speech"):
        path += "/audio/speech" if path.endswith("/v1") else "/v1/audio/speech"
    return match[1] + path + (match[3] or "")


def _counts(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: numbers from 1 to 9999, such as 1,4,16")
    return [int(count) for count in text.split(",")]


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number from 1")
    return int(text)


def _rate(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0 < float(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number above 0, at most 100000")
    return float(text)


def _svg(text: str) -> Path:
    if not text.endswith(".svg"):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a file name that ends in .svg")
    return Path(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = "maya1-tts bench [options] URL"
    parser.epilog = EXIT_CODES
    add("url", type=_url, metavar="URL", help="the server; /v1/audio/speech is added where it is missing")
    add("--token-file", type=Path, metavar="FILE", help="file with the bearer token")
    add("--ca-file", type=Path, metavar="FILE", help="certificate authority to trust instead of the system's")
    add("--model", default="tts-1", help="default: %(default)s")
    add("--voice", help="default: the server's own; most servers want one")
    add("--format", choices=("wav", "pcm", "mp3", "opus", "flac"), default="wav", help="default: %(default)s")
    add("--stream", action="store_true", help="ask for the audio as it is made")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text",
        choices=("short", "medium", "long", "mixed"),
        default="short",
        help="built-in texts; default: %(default)s",
    )
    text.add_argument("--text-file", type=Path, metavar="FILE", help="own texts, one on each line")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--unique",
        dest="repeat",
        action="store_false",
        default=False,
        help="make each sentence new, so that no cache knows it (the default)",
    )
    cache.add_argument("--repeat", action="store_true", help="send the same texts again, to measure a cache")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=_counts,
        default=[1],
        metavar="N[,N...]",
        help="clients that each wait for their answer; one run for each number; default: 1",
    )
    load.add_argument(
        "--rate",
        type=_rate,
        metavar="R",
        help="requests a second with Poisson arrivals, however slow the answers are",
    )
    add("--requests", type=_count, metavar="N", help="end a run after so many")
    add(
        "--duration",
        type=_duration,
        metavar="TIME",
        help="start no more requests after, such as 30s; default: 10s unless --requests is given",
    )
    add("--timeout", type=_duration, default=60.0, metavar="TIME", help="of one request; default: 60s")
    add(
        "--objective",
        type=_duration,
        default=0.2,
        metavar="TIME",
        help="goodput counts requests whose first sound comes within; default: 200ms",
    )
    add("--seed", type=int, default=1, metavar="N", help="of the arrivals; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--plot", type=_svg, metavar="FILE.svg", help="draw the distribution of TTFA")
