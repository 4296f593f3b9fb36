"""HTTP/1.1 as a load tool needs it: persistent connections, and the time at which each piece arrives.

Measured with answers of 60 kB on one core of a shared machine: httpx takes 0.6 ms of CPU a request with one
client and 5 ms with 64, which the server under test would lack; this protocol around httptools 0.15 ms.
"""

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools


class RequestFailed(Exception):
    """No complete answer came. `kind` is one of connect, closed, protocol and timeout."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Answer:
    """arrivals: for each read that brought body bytes, its `time.perf_counter()` and the bytes until then."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One connection with one request at a time on it."""

    def __init__(self) -> None:
        self.usable = True
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, request: bytes) -> Answer:
        """Send one request and wait for its whole answer. Raises RequestFailed."""
        assert self._transport is not None  # noqa: S101  connection_made came first
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.close()  # a server need not go on speaking to nobody
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        self.usable = False
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        now, before = time.perf_counter(), len(self._answer.body)
        answer = self._answer
        if self._waiter is None:
            self.close()  # bytes that nobody asked for
            return
        # The note of the arrival comes before the parser may end the answer.
        answer.arrivals.append((now, before))
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("protocol", f"the answer is not HTTP/1.1: {error}")
        if len(answer.body) > before:
            answer.arrivals[-1] = (now, len(answer.body))
        else:
            answer.arrivals.pop()

    def eof_received(self) -> None:
        self.usable = False

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        headers = self._answer.headers
        ends_with_connection = "content-length" not in headers and "transfer-encoding" not in headers
        if error is None and self._answer.status and ends_with_connection:
            self.on_message_complete()
        self._fail("closed", "the server closed the connection before the end of its answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._answer.body += data

    def on_message_complete(self) -> None:
        self.usable = self.usable and self._parser.should_keep_alive()
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(self._answer)
        if not self.usable:
            self.close()

    def _fail(self, kind: str, message: str) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(RequestFailed(kind, message))
        self.close()


class Client:
    """Requests to one server over as many persistent connections as are needed at the same time."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        timeout: float = 60.0,
        tls: ssl.SSLContext | None = None,
        method: str = "POST",
    ) -> None:
        """url: http:// or https://, with the path. timeout: seconds for one request, connecting included."""
        self._timeout = timeout
        parts = urlsplit(url)
        self._host, self._tls = parts.hostname or "", None
        if parts.scheme == "https":
            self._tls = tls or ssl.create_default_context()
        self._port = parts.port or (443 if self._tls else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join(lines).encode()
        self._idle: deque[Connection] = deque()

    async def ask(self, body: bytes) -> Answer:
        """Raises RequestFailed."""
        request = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._take() or await self._connect()
                answer = await connection.ask(request)
        except TimeoutError:
            raise RequestFailed("timeout", f"no complete answer within {self._timeout:g} s") from None
        self._idle.append(connection)
        return answer

    async def open(self, connections: int) -> None:
        """Have so many connections open and idle. Raises RequestFailed."""
        try:
            async with asyncio.timeout(self._timeout):
                missing = connections - len(self._idle)
                self._idle.extend(await asyncio.gather(*(self._connect() for _ in range(missing))))
        except TimeoutError:
            raise RequestFailed("timeout", f"no connection within {self._timeout:g} s") from None

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise RequestFailed("connect", f"cannot connect to {self._host}:{self._port}: {error}") from None
        return connection
