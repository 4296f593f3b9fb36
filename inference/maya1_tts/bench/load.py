"""Two ways to put load on a server, and what was seen of each request."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from maya1_tts.bench.client import Answer, Client, RequestFailed

HEAD_BYTES = 4096  # more than any WAV header


@dataclass(frozen=True)
class Seen:
    """One request. Times are `time.perf_counter()`.

    due: when it was to be sent. sent: when it was. end: when its answer was complete, or failed.
    error: empty, or what went wrong below HTTP.
    """

    due: float
    sent: float
    end: float
    answer: Answer
    error: str = ""


@dataclass(frozen=True)
class Limit:
    """A run ends with whichever of both comes first; None does not end it."""

    requests: int | None = None
    seconds: float | None = None


@dataclass
class Run:
    """What happened under one load.

    seconds: from the start to the last answer. client_cpu: the share of one core that this tool took.
    """

    load: str
    seen: list[Seen] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu: float = 0.0


@dataclass
class Load:
    """Puts load on one server.

    body: the request body for a text. texts: what to speak, without end.
    raw: the audio comes uncompressed, so its length is known from the first bytes and their number.
    """

    client: Client
    body: Callable[[str], bytes]
    texts: Iterator[str]
    raw: bool = True
    _bodies: dict[bytes, bytearray] = field(default_factory=dict)

    async def closed(self, clients: int, limit: Limit) -> Run:
        """Each of `clients` waits for its answer before it asks again, so a slow server is asked less."""
        run = Run(f"{clients} client{'s' if clients > 1 else ''}")
        await self.client.open(clients)
        left = iter(range(limit.requests)) if limit.requests is not None else itertools.count()
        begin, cpu = time.perf_counter(), time.process_time()
        end = begin + (limit.seconds if limit.seconds is not None else float("inf"))

        async def one_client() -> None:
            while time.perf_counter() < end and next(left, None) is not None:
                run.seen.append(await self.one(time.perf_counter()))

        await asyncio.gather(*(one_client() for _ in range(clients)))
        return _ended(run, begin, cpu)

    async def open(self, rate: float, limit: Limit, seed: int) -> Run:
        """Requests arrive as a Poisson process of `rate` a second, however slow the answers are.

        Each is timed from the moment it was due, so waiting of any kind, also for a connection, is counted
        (Tene, "How NOT to Measure Latency": coordinated omission).
        """
        run = Run(f"{rate:g} /s")
        chance = random.Random(seed)  # noqa: S311  a schedule, not a secret
        under_way: set[asyncio.Task[None]] = set()

        async def one_request(due: float) -> None:
            run.seen.append(await self.one(due))

        begin, cpu = time.perf_counter(), time.process_time()
        due = begin
        for number in itertools.count(1):
            due += chance.expovariate(rate)
            if limit.seconds is not None and due - begin > limit.seconds:
                break
            await asyncio.sleep(due - time.perf_counter())
            task = asyncio.create_task(one_request(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if number == limit.requests:
                break
        await asyncio.gather(*under_way)
        return _ended(run, begin, cpu)

    async def one(self, due: float) -> Seen:
        body = self.body(next(self.texts))
        sent = time.perf_counter()
        try:
            answer = await self.client.ask(body)
        except RequestFailed as failure:
            return Seen(due, sent, time.perf_counter(), Answer(), failure.kind)
        end = time.perf_counter()
        # A long run would fill the memory: of uncompressed audio only the head is kept, and of equal bodies,
        # as a cache gives them, only one.
        if self.raw:
            del answer.body[HEAD_BYTES:]
        answer.body = self._bodies.setdefault(bytes(answer.body), answer.body)
        return Seen(due, sent, end, answer)


def _ended(run: Run, begin: float, cpu: float) -> Run:
    run.seconds = time.perf_counter() - begin
    run.client_cpu = (time.process_time() - cpu) / run.seconds
    return run
