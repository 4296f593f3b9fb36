"""The command `maya1-tts`. Docker often runs `healthcheck`, so each action imports only what it needs."""

import argparse
import http.client
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maya1_tts.bench.options import add_options as add_bench_options
from maya1_tts.config import load_settings
from maya1_tts.errors import ConfigError
from maya1_tts.optimize.options import add_optimize_options

log = logging.getLogger(__name__)


def serve() -> int:
    from maya1_tts import tracing
    from maya1_tts.api import Service
    from maya1_tts.engines import load_engine
    from maya1_tts.logs import setup_logging
    from maya1_tts.server import Server

    settings = load_settings()
    setup_logging(settings.log_level)
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint)
    server = Server(Service(settings, load_engine))
    server.run()
    tracing.stop()
    if isinstance(server.fatal, ConfigError):
        raise server.fatal
    if server.fatal:
        log.error("the engine could not be started", exc_info=server.fatal)
    return 1 if server.fatal else 0


def healthcheck() -> int:
    """0 when the service on this machine is ready, else 1."""
    connection = http.client.HTTPConnection("127.0.0.1", load_settings().port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1


def voices() -> int:
    from maya1_tts.engines import load_engine

    engine = load_engine(load_settings())
    for voice in engine.voices.values():
        print(f"{voice.id}\t{voice.language}\t{voice.sample_rate} Hz\t{engine.name}\t{voice.name}")
    engine.close()
    return 0


def make_tiny_model(folder: Path) -> int:
    from maya1_tts.engines.maya1.tiny import make_tiny_model

    make_tiny_model(folder)
    return 0


def checksum_model(folder: Path) -> int:
    from maya1_tts.engines.maya1.folder import open_folder, write_sums

    write_sums(folder)
    open_folder(folder)
    return 0


def bench(**options: Any) -> int:
    from maya1_tts.bench.command import bench

    return bench(argparse.Namespace(**options))


def optimize(**options: Any) -> int:
    from maya1_tts.optimize.command import optimize

    return optimize(argparse.Namespace(**options))


def main() -> int:
    parser = argparse.ArgumentParser(prog="maya1-tts", description="OpenAI-compatible speech service.")
    commands = parser.add_subparsers(dest="command", required=True)
    actions: dict[str, Callable[..., int]] = {
        "serve": serve,
        "healthcheck": healthcheck,
        "voices": voices,
        "make-tiny-model": make_tiny_model,
        "checksum-model": checksum_model,
        "bench": bench,
        "optimize": optimize,
    }
    commands.add_parser("serve", help="run the service; configured by MAYA1_TTS_* variables")
    commands.add_parser("healthcheck", help="exit 0 when the service on this machine is ready")
    commands.add_parser("voices", help="list the voices")
    tiny = commands.add_parser("make-tiny-model", help="write a Maya1 with random weights, for tests")
    checksum = commands.add_parser("checksum-model", help="write the SHA256SUMS of a Maya1 model folder")
    for command in (tiny, checksum):
        command.add_argument("folder", type=Path)
    add_bench_options(commands.add_parser("bench", help="put load on a speech server and report its speed"))
    add_optimize_options(
        commands.add_parser("optimize", help="smaller and faster graphs, each of them judged")
    )
    arguments = vars(parser.parse_args())
    try:
        return actions[arguments.pop("command")](**arguments)
    except ConfigError as error:
        print(f"maya1-tts: {error}", file=sys.stderr)
        return 2
