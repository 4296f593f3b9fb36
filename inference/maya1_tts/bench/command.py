"""The command: read the files, warm up, run each load, write the reports."""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from maya1_tts import __version__
from maya1_tts.bench.client import Client, RequestFailed
from maya1_tts.bench.load import Limit, Load, Run
from maya1_tts.bench.plot import plot
from maya1_tts.bench.report import listen, summarise, table
from maya1_tts.bench.texts import SETS, unique
from maya1_tts.errors import ConfigError, shown

SCHEMA = 1  # of the JSON report; raised when a field changes its meaning or goes


class NothingMeasured(Exception):
    """The server gave no audio in the warm-up."""


def bench(options: argparse.Namespace) -> int:
    """The exit code, see options.EXIT_CODES. Raises ConfigError."""
    texts = _texts(options)
    headers = {
        "Content-Type": "application/json",
        "Accept": "*/*",
        "User-Agent": f"maya1-tts-bench/{__version__}",
    }
    if options.token_file:
        headers["Authorization"] = f"Bearer {_read('--token-file', options.token_file).strip()}"
    client = Client(options.url, headers, options.timeout, _trust(options.ca_file))
    load = Load(
        client,
        speech_body(options.model, options.voice, options.format, options.stream),
        itertools.cycle(texts) if options.repeat else unique(texts),
        raw=options.format in ("wav", "pcm"),
    )
    started = datetime.now(UTC)
    try:
        runs = uvloop.run(_measure(load, options, len(texts)))
    except (NothingMeasured, RequestFailed) as error:
        print(f"maya1-tts bench: {options.url} was not measured: {error}.", file=sys.stderr)
        return 3
    summaries = [summarise(run, options.format, options.objective) for run in runs]
    print(f"{options.url}, {options.format}{', streamed' if options.stream else ''}, "
          f"{'the same texts again' if options.repeat else 'each text new'}")  # fmt: skip
    print(table(summaries, options.objective))
    if options.json:
        report = {
            "schema": SCHEMA,
            "tool": f"maya1-tts {__version__}",
            "started": started.isoformat(timespec="seconds"),
            "client": {"cores": os.cpu_count(), "platform": platform.platform()},
            "options": {name: _plain(value) for name, value in sorted(vars(options).items())},
            "runs": [dataclasses.asdict(summary) for summary in summaries],
        }
        _write("--json", options.json, json.dumps(report, indent=2) + "\n")
    if options.plot:
        ttfa = {run.load: [one.ttfa for one in listen(run, options.format)[0]] for run in runs}
        _write("--plot", options.plot, plot(f"Time to first audio of {options.url}", ttfa, options.objective))
    return 0 if all(summary.good == summary.requests for summary in summaries) else 1


def speech_body(model: str, voice: str | None, format: str, stream: bool) -> Callable[[str], bytes]:
    """The body of OpenAI's POST /v1/audio/speech for a text.

    To stream, some servers want `stream` and some `stream_format`; those that know one leave the other alone.
    """
    fields: dict[str, object] = {"model": model, "response_format": format}
    if voice:
        fields["voice"] = voice
    if stream:
        fields |= {"stream": True, "stream_format": "audio"}
    return lambda text: json.dumps(fields | {"input": text}).encode()


async def _measure(load: Load, options: argparse.Namespace, texts: int) -> list[Run]:
    """Raises NothingMeasured, or RequestFailed when connections are refused."""
    seconds = options.duration if options.duration or options.requests else 10.0
    limit = Limit(options.requests, seconds)
    try:
        # Every text once, so that with --repeat a cache knows them all.
        await _warm_up(load, options.format, texts if options.repeat else min(texts, 3))
        if options.rate:
            return [await load.open(options.rate, limit, options.seed)]
        return [await load.closed(clients, limit) for clients in options.concurrency]
    finally:
        load.client.close()


async def _warm_up(load: Load, format: str, requests: int) -> None:
    run = await load.closed(1, Limit(requests=requests))
    if listen(run, format)[0]:
        return
    first = run.seen[0]
    why = first.error or f"status {first.answer.status}, {shown(bytes(first.answer.body[:200]), 200)}"
    if first.answer.status == 200:
        why = f"the answer is not {format}"
    raise NothingMeasured(f"no request of the warm-up was answered with audio; the first: {why}")


def _texts(options: argparse.Namespace) -> tuple[str, ...]:
    if options.text_file is None:
        return SETS[options.text]
    lines = _read("--text-file", options.text_file).splitlines()
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise ConfigError(
            f"--text-file {shown(str(options.text_file))} is empty; allowed: one text on each line."
        )
    return texts


def _trust(ca_file: Path | None) -> ssl.SSLContext | None:
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ca-file {shown(str(ca_file))} cannot be used: {error}.") from None


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {shown(str(path))} cannot be read: {error}.") from None


def _write(option: str, path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        raise ConfigError(f"{option} {shown(str(path))} cannot be written: {error.strerror}.") from None


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
