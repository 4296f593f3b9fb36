"""The process: listen, serve, drain, stop."""

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from maya1_tts.api import Service, create_app
from maya1_tts.watchdog import Watchdog

if TYPE_CHECKING:
    from maya1_tts.grpc import GrpcServer

log = logging.getLogger(__name__)


def _grpc_server(service: Service) -> "GrpcServer":
    from maya1_tts.grpc import GrpcServer  # costs time and memory, which only those pay who want it

    return GrpcServer(service)


class Server(uvicorn.Server):
    """uvicorn, but the first SIGTERM drains: unready at once, and gone when the last speech has been sent."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            host=settings.host,
            port=settings.port,
            http="httptools",
            loop="uvloop",
            ws="websockets-sansio",
            ws_max_size=settings.max_body_bytes,
            ws_per_message_deflate=False,  # audio gains nothing, and a little text could inflate to a lot
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_keep_alive=75,  # longer than a proxy keeps idle connections: it never meets a closed one
            timeout_graceful_shutdown=1,  # draining has waited already
        )
        super().__init__(config)
        self._service = service
        self._watchdog = Watchdog(service) if settings.watchdog_seconds else None
        self._grpc = _grpc_server(service) if settings.grpc_port else None
        self._drain: asyncio.Task[None] | None = None
        self.fatal: Exception | None = None
        service.on_fatal = self._fail
        service.on_ready = self._report_health

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._watchdog:
            self._watchdog.start()
        if self._grpc:
            await self._grpc.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc:
            await self._grpc.stop()
        await super().shutdown(sockets)
        if self._watchdog:
            self._watchdog.stop()

    async def _report_health(self) -> None:
        if self._grpc:
            await self._grpc.report_health()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or not self.started:
            self.should_exit = True
            return
        self._service.draining = True
        log.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        asyncio.get_running_loop().call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._service.leaving.set()
        self._drain = asyncio.create_task(self._wait_until_drained())

    async def _wait_until_drained(self) -> None:
        await self._report_health()
        end = asyncio.get_running_loop().time() + self._service.settings.drain_seconds
        while self._service.in_flight and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        log.info("drained", extra={"fields": {"cut_off": self._service.in_flight}})
        self.should_exit = True

    def _fail(self, error: Exception) -> None:
        self.fatal = error
        self.should_exit = True
