"""Everything one process holds."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from fastapi import FastAPI

from maya1_tts import __version__
from maya1_tts.admission import Claim
from maya1_tts.audit import Audit, Outcome, Record
from maya1_tts.auth import ANYBODY, Authenticator, Scope, Subject
from maya1_tts.budget import Budgets
from maya1_tts.cache import Cache
from maya1_tts.certificates import Certificates
from maya1_tts.config import Settings
from maya1_tts.engine import Engine
from maya1_tts.errors import ApiError, ConfigError, shown
from maya1_tts.gpu import Gpus
from maya1_tts.jobs import Jobs
from maya1_tts.metrics import Metrics
from maya1_tts.studio import Studio

# While more is asked for than the engine can speak, only who would begin within this share of the usual wait
# is let in: they hear their first sound as soon as at other times.
CROWDED = 0.3
log = logging.getLogger(__name__)


class Service:
    """Everything one process holds. It listens at once, and is ready once the engine has spoken."""

    def __init__(self, settings: Settings, load_engine: Callable[[Settings, Metrics], Engine]) -> None:
        """Raises ConfigError when a key or password file cannot be used."""
        self.settings = settings
        self.metrics = Metrics()
        self.gpus = Gpus(self.metrics)
        self.auth = Authenticator(settings) if settings.auth == "jwt" else None
        self.certificates = Certificates(settings)
        self.audit = Audit(settings)
        self.budgets = Budgets(settings, self.metrics)
        self.cache = Cache(settings, self.metrics)
        self.jobs = Jobs(settings, self.metrics)
        self.draining = False
        self.leaving = asyncio.Event()  # set while draining, for those who wait for a client
        self.stuck = False  # the process is about to end because it has stopped working
        self.in_flight = 0  # how many are `speaking`
        self.on_fatal: Callable[[Exception], None] = lambda error: None
        self.on_ready: Callable[[], Awaitable[None]] | None = None
        self._load_engine = load_engine
        self._engine: Engine | None = None
        self._studio: Studio | None = None
        self.metrics.build.info({"version": __version__})
        self.metrics.queue_limit.set(settings.queue_limit)
        self.metrics.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        return self._studio is not None and not self.draining and not self.stuck

    @property
    def studio_or_none(self) -> Studio | None:
        """The studio, also while draining; None before there is one."""
        return self._studio

    @property
    def engine(self) -> Engine:
        if self._engine is None or self._studio is None:
            raise ApiError(503, "not_ready", "The engine is still loading.", headers={"Retry-After": "1"})
        return self._engine

    @property
    def studio(self) -> Studio:
        if self.draining:
            raise ApiError(503, "draining", "This server is about to stop.", headers={"Retry-After": "1"})
        if self._studio is None:
            raise ApiError(503, "not_ready", "The engine is still loading.", headers={"Retry-After": "1"})
        return self._studio

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with self.cache.running(), self.budgets.running():
            start = asyncio.create_task(self._start())
            yield
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            await self.jobs.close()
            if self._engine:
                self._engine.close()

    async def _start(self) -> None:
        try:
            engine = self._engine = await asyncio.to_thread(self._load_engine, self.settings, self.metrics)
            if self.settings.default_voice not in engine.voices:
                raise ConfigError(
                    f"MAYA1_TTS_DEFAULT_VOICE={shown(self.settings.default_voice)} is unknown; "
                    f"allowed: {', '.join(engine.voices)}."
                )
            self.metrics.engine.info({"engine": engine.name, "voices": str(len(engine.voices))})
            studio = Studio(self.settings, engine, self.cache, self.metrics)
            await studio.warm_up()
            self._studio = studio
            if self.on_ready:
                await self.on_ready()
            log.info("ready", extra={"fields": {"engine": engine.name, "voices": list(engine.voices)}})
            await self.jobs.work(self)
        except Exception as error:
            self.on_fatal(error)

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Around whatever speaks to a client, until its last byte has been sent: a drain waits for it."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def claim(self, subject: Subject, headers: Mapping[str, str], listening: bool) -> Claim:
        """What a real-time request may expect. Raises ApiError 400 for a wrong deadline.

        listening: somebody waits for the first sound, and not for a whole file.
        """
        asked = headers.get("x-deadline-ms")
        if asked is None and not listening:
            seconds = self.settings.deadline_seconds
        elif asked is None:
            seconds = self.settings.stream_deadline_seconds * (CROWDED if self.studio.crowded else 1)
        elif re.fullmatch(r"[1-9][0-9]{0,6}", asked):
            seconds = int(asked) / 1000
        else:
            raise ApiError(
                400,
                "invalid_value",
                f"The header 'X-Deadline-Ms' is {shown(asked)}; allowed: milliseconds from 1 to 9999999.",
                "X-Deadline-Ms",
            )
        return Claim(subject.tenant, deadline=time.monotonic() + seconds, listening=listening)

    def conclude(self, record: Record, outcome: Outcome, status: int | str, code: str | None = None) -> None:
        """Ends a request for speech, by whatever entry point it came: settles its budget and logs it.

        Whoever heard nothing, and did not leave by himself, pays nothing. A hit costs its characters alone.
        """
        if charge := record.charge:
            heard = record.ttfa is not None or outcome == "cancelled"
            speech = record.listener.speech if record.listener else None
            made = speech.seconds if speech and speech.cache != "hit" else 0.0
            self.budgets.settle(charge, charge.paid[0] if heard else 0.0, made if heard else 0.0)
        self.audit.write(record, outcome, status, code)

    def subject(
        self, authorization: str | None, scope: Scope | None = None, *, certificate: str | None = None
    ) -> Subject:
        """Who asks: by a token, else by the gateway's word on a certificate.

        Raises ApiError 401 when that is not certain, 403 when the scope is missing.
        """
        with self._refusals_counted():
            known = self.certificates.check(certificate) if authorization is None else None
            subject = known or (self.auth.check(authorization) if self.auth else ANYBODY)
        if scope:
            self.need(subject, scope)
        return subject

    def need(self, subject: Subject, scope: Scope) -> None:
        """Raises ApiError 403 unless the subject's token has the scope."""
        with self._refusals_counted():
            subject.need(scope)

    @contextlib.contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self.metrics.auth_failures.labels(error.code).inc()
            raise
