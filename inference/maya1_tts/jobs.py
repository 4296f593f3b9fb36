"""Batch jobs: speech that nobody waits for, in Redis, so that any process can answer for it and make it.

A job is a hash; its audio is a string beside it. The sorted set `due` holds every unfinished job with the
time from which a process may take it: for a queued job the time it came, for a running one the end of its
lease. Who takes a job moves that time on and keeps doing so while it works; when a process dies, the lease
runs out and the job is due again. A job may thus be spoken twice, which does no harm: equal orders give equal
audio, and only who holds the lease may finish the job. All times are those of Redis.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import OutOfMemoryError, RedisError

from maya1_tts.admission import Claim
from maya1_tts.audio import Format
from maya1_tts.audit import Record
from maya1_tts.auth import Subject
from maya1_tts.config import Settings
from maya1_tts.errors import ApiError, shown
from maya1_tts.metrics import Metrics
from maya1_tts.redis_client import connect
from maya1_tts.request import JobRequest, to_order

if TYPE_CHECKING:
    from maya1_tts.api.service import Service

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TIMEOUT_SECONDS = 5.0  # audio may be large
LEASE_SECONDS, RENEW_SECONDS = 10, 2
POLL_SECONDS = 1.0
ATTEMPTS = 3  # a job that took three processes with it does not get a fourth
PREFIX = "maya1-tts:job:"
DUE = "maya1-tts:jobs:due"
log = logging.getLogger(__name__)

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# What expired is not in its owner's list any longer.
_PRUNE = """
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if redis.call('EXISTS', ARGV[1] .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
end
"""
# KEYS: owner's list, due, job. ARGV: prefix, id, digest, limit, then the fields of the job.
_SUBMIT = f"""
local digest = redis.call('HGET', KEYS[3], 'digest')
if digest then return digest == ARGV[3] and 'known' or 'conflict' end
{_PRUNE}
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 'full' end
{_NOW}
redis.call('HSET', KEYS[3], 'digest', ARGV[3], 'status', 'queued', 'created', now, unpack(ARGV, 5))
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[2])
return 'new'
"""
_LIST = f"{_PRUNE} return redis.call('ZREVRANGE', KEYS[1], 0, -1)"
# KEYS: due. ARGV: prefix, holder, lease in ms.
_CLAIM = f"""
{_NOW}
local id, job
repeat
  if id then redis.call('ZREM', KEYS[1], id) end
  id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
  if not id then return false end
  job = ARGV[1] .. id
until redis.call('EXISTS', job) == 1
redis.call('HSET', job, 'status', 'running', 'holder', ARGV[2], 'started', now)
redis.call('HINCRBY', job, 'attempts', 1)
redis.call('ZADD', KEYS[1], now + ARGV[3], id)
return id
"""
# The rest is for the holder alone. KEYS: due, job. ARGV: id, holder, and what is said below.
_IF_HELD = "if redis.call('HGET', KEYS[2], 'holder') ~= ARGV[2] then return 0 end" + _NOW
_RENEW = f"{_IF_HELD} redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1]) return 1"  # lease in ms
_GIVE_BACK = f"""{_IF_HELD}
redis.call('HSET', KEYS[2], 'status', 'queued')
redis.call('HINCRBY', KEYS[2], 'attempts', -1)
redis.call('HDEL', KEYS[2], 'holder', 'started')
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
return 1
"""  # delay in ms
_END = """
redis.call('HDEL', KEYS[2], 'holder', 'body')
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[3])
"""
_FINISH = f"""{_IF_HELD}
redis.call('HSET', KEYS[2], 'finished', now, 'expires', now + 1000 * ARGV[3], unpack(ARGV, 4))
{_END}
return 1
"""  # time to live in s, then fields of the job
# KEYS: due, job, audio, owner's list. ARGV: id, owner, time to live in s.
_DELETE = f"""
if redis.call('HGET', KEYS[2], 'owner') ~= ARGV[2] then return false end
local status = redis.call('HGET', KEYS[2], 'status')
{_NOW}
if status == 'queued' or status == 'running' then
  redis.call('HSET', KEYS[2], 'status', 'cancelled', 'finished', now, 'expires', now + 1000 * ARGV[3])
  {_END}
  return 'cancelled'
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
return 'deleted'
"""


@dataclass(frozen=True)
class Job:
    """One job as Redis has it. Times are seconds since the epoch."""

    id: str
    fields: dict[str, str]

    @property
    def status(self) -> Status:
        return cast(Status, self.fields["status"])

    @property
    def format(self) -> Format:
        return cast(Format, self.fields["format"])

    @property
    def attempts(self) -> int:
        return int(self.fields["attempts"])

    @property
    def subject(self) -> Subject:
        return Subject(self.fields["subject"], self.fields["tenant"], frozenset({"jobs"}))

    @property
    def request(self) -> JobRequest:
        return JobRequest.model_validate_json(self.fields["body"])

    def time(self, name: Literal["created", "started", "finished", "expires"]) -> float | None:
        return int(self.fields[name]) / 1000 if name in self.fields else None

    def json(self, name: Literal["metadata", "error", "audio"]) -> Any:
        return json.loads(self.fields.get(name, "null"))


def _list(owner: str) -> str:
    return f"maya1-tts:jobs:of:{owner}"


def _audio(job_id: str) -> str:
    return f"{PREFIX}{job_id}:audio"


def _owner(subject: Subject) -> str:
    return hashlib.sha256(subject.id.encode()).hexdigest()


class Jobs:
    """All methods raise ApiError 503 `jobs_unavailable` while there is no Redis."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._redis = connect(settings, TIMEOUT_SECONDS)
        self._holder = uuid.uuid4().hex
        self._submitted = asyncio.Event()
        self._scripts: dict[str, AsyncScript] = {}

    async def submit(self, subject: Subject, request: JobRequest, key: str | None) -> Job:
        """Keep a job, or find the one that the same subject submitted with the same idempotency key.

        Raises ApiError 409 when that one has another body, 429 when the subject has too many jobs.
        """
        owner = _owner(subject)
        name = hashlib.sha256(f"{owner} {key}".encode()).hexdigest()[:32] if key else uuid.uuid4().hex
        job_id = f"job_{name}"
        body = request.model_dump_json(exclude_unset=True)
        digest = hashlib.sha256(json.dumps(request.model_dump(), sort_keys=True).encode()).hexdigest()
        fields = {
            "owner": owner,
            "tenant": subject.tenant,
            "subject": subject.id,
            "body": body,
            "metadata": json.dumps(request.metadata),
            "format": request.response_format,
            "characters": str(len(request.input)),
        }
        flat = [text for field in fields.items() for text in field]
        limit = self._settings.jobs_per_subject
        outcome = await self._run(
            _SUBMIT, [_list(owner), DUE, PREFIX + job_id], [PREFIX, job_id, digest, limit, *flat]
        )
        if outcome == b"conflict":
            raise ApiError(
                409,
                "idempotency_conflict",
                f"The header 'Idempotency-Key' is {shown(key)}, which another job with another body "
                "already has; allowed: a new key, or the same body.",
            )
        if outcome == b"full":
            raise ApiError(
                429,
                "too_many_jobs",
                f"You have {limit} jobs, which is the limit; "
                "allowed: delete finished ones, or wait until they expire.",
            )
        self._submitted.set()
        return await self.get(subject, job_id)

    async def get(self, subject: Subject, job_id: str) -> Job:
        """Raises ApiError 404 unless the subject has such a job."""
        job = await self._read(job_id)
        if job.fields.get("owner") != _owner(subject):
            raise _unknown(job_id)
        return job

    async def page(self, subject: Subject, limit: int, after: str | None) -> tuple[list[Job], bool]:
        """Up to `limit` of the subject's jobs, the newest first, and whether there are more."""
        found = await self._run(_LIST, [_list(_owner(subject))], [PREFIX])
        ids = [job_id.decode() for job_id in found]
        if after is not None:
            if after not in ids:
                raise _unknown(after, "after")
            ids = ids[ids.index(after) + 1 :]
        jobs = []
        for job_id in ids[:limit]:
            with contextlib.suppress(ApiError):  # it expired just now
                jobs.append(await self.get(subject, job_id))
        return jobs, len(ids) > limit

    async def audio(self, job: Job) -> bytes:
        """Raises ApiError 409 unless the job has succeeded, 410 when Redis had to forget the audio."""
        if job.status != "succeeded":
            raise ApiError(
                409, "job_not_ready", f"The job is {job.status}; only one that succeeded has a result."
            )
        body = await self._answer(lambda redis: redis.get(_audio(job.id)))
        if body is None:
            raise ApiError(410, "result_gone", "The result is not there any more: Redis ran out of memory.")
        return cast(bytes, body)

    async def delete(self, subject: Subject, job_id: str) -> Literal["cancelled", "deleted"]:
        """Cancel an unfinished job, or remove a finished one. Raises ApiError 404 as `get`."""
        owner = _owner(subject)
        outcome = await self._run(
            _DELETE,
            [DUE, PREFIX + job_id, _audio(job_id), _list(owner)],
            [job_id, owner, self._settings.job_ttl_seconds],
        )
        if outcome is None:
            raise _unknown(job_id)
        return cast(Literal["cancelled", "deleted"], outcome.decode())

    async def work(self, service: "Service") -> None:
        """Carry out jobs, as many at once as the engine has lanes, until cancelled.

        What is not finished then is given back. None is begun while the service drains.
        """
        running: set[asyncio.Task[None]] = set()
        try:
            while self._redis:
                if len(running) == service.engine.lanes:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                self._submitted.clear()
                job = None
                with contextlib.suppress(ApiError):
                    job = await self._claim()
                if job:
                    task = asyncio.create_task(self._carry_out(job, service))
                    running.add(task)
                    task.add_done_callback(running.discard)
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._submitted.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        if self._redis:
            await self._redis.aclose()

    async def _claim(self) -> Job | None:
        found = await self._run(_CLAIM, [DUE], [PREFIX, self._holder, LEASE_SECONDS * 1000])
        return await self._read(found.decode()) if found else None

    async def _read(self, job_id: str) -> Job:
        fields = await self._answer(lambda redis: redis.hgetall(PREFIX + job_id))
        return Job(job_id, {name.decode(): value.decode() for name, value in fields.items()})

    async def _carry_out(self, job: Job, service: "Service") -> None:
        work = asyncio.create_task(self._outcome(job, service))
        lease = asyncio.create_task(self._keep(job))
        try:
            await asyncio.wait({work, lease}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info(
                    "job taken away", extra={"fields": {"job": job.id}}
                )  # cancelled, or the lease ran out
        except asyncio.CancelledError:
            await self._give_back(job, 0)
            raise
        finally:
            work.cancel()
            lease.cancel()
            await asyncio.gather(work, lease, return_exceptions=True)

    async def _keep(self, job: Job) -> None:
        """Renew the lease until it is lost."""
        held = True
        while held:
            await asyncio.sleep(RENEW_SECONDS)
            with contextlib.suppress(ApiError):
                held = bool(await self._as_holder(_RENEW, job, LEASE_SECONDS * 1000))

    async def _give_back(self, job: Job, delay: int) -> None:
        with contextlib.suppress(ApiError):  # if Redis is away, the lease will run out
            await self._as_holder(_GIVE_BACK, job, delay * 1000)

    async def _outcome(self, job: Job, service: "Service") -> None:
        record = Record(job.id, "/v1/audio/jobs", subject=job.subject)
        try:
            if job.attempts > ATTEMPTS:
                raise ApiError(
                    500, "job_abandoned", f"The service stopped {ATTEMPTS} times while it spoke this job."
                )
            await self._speak(job, service, record)
            service.conclude(record, "done", "succeeded")
            return
        except ApiError as error:
            failure = error
        except asyncio.CancelledError:
            service.conclude(record, "cancelled", "cancelled")
            raise
        except Exception:
            log.exception("job failed")
            failure = ApiError(500, "internal_error", "The service failed; it has logged why.")
        if failure.status in (429, 503):  # too much to do just now
            await self._give_back(job, int(failure.headers.get("Retry-After", "1")))
        else:
            await self._end(job, "failed", "error", failure.body()["error"])
            service.conclude(record, "failed", "failed", failure.code)

    async def _speak(self, job: Job, service: "Service", record: Record) -> None:
        studio, engine = service.studio, service.engine
        request = job.request
        record.text, record.engine = request.input, engine.name
        order = record.order = to_order(request, self._settings, engine, self._settings.job_max_input_chars)
        listener = record.listener = studio.listen(order, Claim(job.subject.tenant, "batch", listening=False))
        speech = listener.speech
        try:
            body = await speech.whole()
        finally:
            studio.leave(listener)
        rate = order.voice.sample_rate
        told = {
            "engine": engine.name,
            "voice": order.voice.id,
            "sample_rate": order.file_rate,
            "audio_seconds": round(speech.seconds, 6),
            "rtf": round(speech.busy_seconds / speech.seconds, 4),
            "cache": speech.cache,
            "bytes": len(body),
            "segments": [timing.told(rate) for timing in speech.timings] if request.timestamps else None,
        }
        # The audio first: a job that says it has succeeded has a result.
        key = _audio(job.id)
        await self._answer(lambda redis: redis.set(key, body, ex=self._settings.job_ttl_seconds))
        if not await self._end(job, "succeeded", "audio", told):
            await self._answer(lambda redis: redis.delete(key))

    async def _end(self, job: Job, status: Status, field: str, value: Any) -> bool:
        ttl = self._settings.job_ttl_seconds
        ended = await self._as_holder(_FINISH, job, ttl, "status", status, field, json.dumps(value))
        if ended:
            self._metrics.jobs.labels(status).inc()
        return bool(ended)

    async def _as_holder(self, script: str, job: Job, *arguments: Any) -> Any:
        return await self._run(script, [DUE, PREFIX + job.id], [job.id, self._holder, *arguments])

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        def call(redis: Redis) -> Awaitable[Any]:
            registered = self._scripts.setdefault(script, redis.register_script(script))
            return registered(keys=keys, args=arguments)

        return await self._answer(call)

    async def _answer(self, command: Callable[[Redis], Awaitable[Any]]) -> Any:
        unavailable = ApiError(
            503, "jobs_unavailable", "Jobs need Redis, which does not answer.", headers={"Retry-After": "5"}
        )
        if self._redis is None:
            raise unavailable
        try:
            return await command(self._redis)
        except OutOfMemoryError:
            raise ApiError(507, "jobs_storage_full", "Redis has no room for this job.") from None
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer: %s", type(error).__name__)
            raise unavailable from None


def _unknown(job_id: str, param: str = "id") -> ApiError:
    message = f"{param!r} is {shown(job_id)}; allowed: the id of one of your jobs."
    return ApiError(404, "job_not_found", message, param)
