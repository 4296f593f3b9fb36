"""The command `maya1-tts`."""

import argparse
import asyncio
import http.client
import logging
import signal
import sys
from types import FrameType

import uvicorn

from maya1_tts.api import Service, create_app
from maya1_tts.config import Settings, load_settings
from maya1_tts.engine import Engine
from maya1_tts.errors import ConfigError
from maya1_tts.logs import setup_logging

log = logging.getLogger(__name__)


def load_engine(settings: Settings) -> Engine:
    """The engine that MAYA1_TTS_ENGINE names. Raises ConfigError when it cannot be loaded."""
    from maya1_tts.onnx_voice import (
        OnnxVoiceEngine,
    )  # loads ONNX Runtime, which `healthcheck` need not wait for

    return OnnxVoiceEngine(settings.model_dir, settings.workers, settings.threads)


class Server(uvicorn.Server):
    """uvicorn, but the first SIGTERM drains: unready at once, and gone when the last speech has been sent."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # longer than a proxy keeps idle connections: it never meets a closed one
            timeout_graceful_shutdown=1,  # draining has waited already
        )
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None
        self.fatal: Exception | None = None
        service.on_fatal = self._fail

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or not self.started:
            self.should_exit = True
            return
        self._service.draining = True
        log.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        asyncio.get_running_loop().call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._drain = asyncio.create_task(self._wait_until_drained())

    async def _wait_until_drained(self) -> None:
        end = asyncio.get_running_loop().time() + self._service.settings.drain_seconds
        while self._service.in_flight and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        log.info("drained", extra={"fields": {"cut_off": self._service.in_flight}})
        self.should_exit = True

    def _fail(self, error: Exception) -> None:
        self.fatal = error
        self.should_exit = True


def serve() -> int:
    settings = load_settings()
    setup_logging(settings.log_level)
    server = Server(Service(settings, load_engine))
    server.run()
    if isinstance(server.fatal, ConfigError):
        raise server.fatal
    if server.fatal:
        log.error("the engine could not be started", exc_info=server.fatal)
    return 1 if server.fatal else 0


def healthcheck() -> int:
    """0 when this container's service is ready, else 1."""
    connection = http.client.HTTPConnection("127.0.0.1", load_settings().port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1


def voices() -> int:
    engine = load_engine(load_settings())
    for voice in engine.voices.values():
        print(f"{voice.id}\t{voice.language}\t{voice.sample_rate} Hz\t{engine.name}\t{voice.name}")
    engine.close()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="maya1-tts", description="OpenAI-compatible speech service.")
    commands = parser.add_subparsers(dest="command", required=True)
    actions = {"serve": serve, "healthcheck": healthcheck, "voices": voices}
    commands.add_parser("serve", help="run the service; configured by MAYA1_TTS_* variables")
    commands.add_parser("healthcheck", help="exit 0 when the service on this machine is ready")
    commands.add_parser("voices", help="list the voices")
    try:
        return actions[parser.parse_args().command]()
    except ConfigError as error:
        print(f"maya1-tts: {error}", file=sys.stderr)
        return 2
