"""How much each subject may have spoken in a minute: characters asked for, and seconds of audio made for it.

Each budget is a token bucket that holds a minute's worth and fills evenly. What is kept is the part that is
used, so that a bucket nobody knows is a full one, and expires when it is full again. Both buckets of a
subject are one hash in Redis, changed by one script by Redis' clock: all processes share them. While Redis is
away each process counts for itself, from what it last knew: a budget may then grow with the number of
processes, but is never without a limit.

A request pays its characters and an estimate of its seconds in advance, or nothing at all when one does not
fit. When it is over, the estimate is replaced by what was made: more than was there leaves a debt.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.exceptions import RedisError

from maya1_tts.auth import Subject
from maya1_tts.config import Settings
from maya1_tts.errors import ApiError
from maya1_tts.metrics import BUDGETS, Metrics
from maya1_tts.redis_client import connect

MINUTE = 60.0
TIMEOUT_SECONDS = 0.25  # what one request loses at most when Redis hangs; the next ones lose nothing
RETRY_SECONDS = 1.0  # how long it is then left alone
MAX_LOCAL = 10_000  # subjects whose buckets a process keeps while Redis is away
Pair = tuple[float, float]  # characters, seconds of audio
log = logging.getLogger(__name__)

# KEYS: the subject's hash. ARGV: 1 to charge in any case, else 0; then limit and cost of each budget.
# Returns whether it was charged, and what is used of each budget now.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local state = redis.call('HMGET', KEYS[1], 'at', 'characters', 'audio_seconds')
local elapsed = math.max(0, now - (tonumber(state[1]) or now))
local used, fits, full_in = {}, true, 0
for i = 1, 2 do
  local limit, cost = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  used[i] = math.max(0, (tonumber(state[i + 1]) or 0) - elapsed * limit / 60)
  if limit > 0 and used[i] + cost > limit then fits = false end
end
if fits or ARGV[1] == '1' then
  for i = 1, 2 do
    local limit = tonumber(ARGV[2 * i])
    if limit > 0 then
      used[i] = math.max(0, used[i] + tonumber(ARGV[2 * i + 1]))
      full_in = math.max(full_in, used[i] / limit * 60)
    end
  end
  redis.call('HSET', KEYS[1], 'at', now, 'characters', used[1], 'audio_seconds', used[2])
  redis.call('PEXPIRE', KEYS[1], math.ceil(full_in * 1000) + 1000)
end
return {fits and 1 or 0, string.format('%.6f', used[1]), string.format('%.6f', used[2])}
"""


def key_of(subject: Subject) -> str:
    return f"maya1-tts:budget:{hashlib.sha256(subject.id.encode('utf-8', 'surrogatepass')).hexdigest()}"


class _Local:
    """The same buckets in this process alone, by its own clock."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, Pair]] = {}

    def apply(self, key: str, limits: Pair, costs: Pair, force: bool) -> tuple[bool, Pair]:
        now = time.monotonic()
        at, used = self._buckets.pop(key, (now, (0.0, 0.0)))
        characters, seconds = (
            max(0.0, amount - (now - at) * limit / MINUTE) for amount, limit in zip(used, limits, strict=True)
        )
        fits = all(
            not limit or amount + cost <= limit
            for amount, limit, cost in zip((characters, seconds), limits, costs, strict=True)
        )
        if fits or force:
            characters = max(0.0, characters + costs[0]) if limits[0] else characters
            seconds = max(0.0, seconds + costs[1]) if limits[1] else seconds
        self.note(key, (characters, seconds), now)
        return fits, (characters, seconds)

    def note(self, key: str, used: Pair, now: float) -> None:
        self._buckets.pop(key, None)
        self._buckets[key] = now, used
        if len(self._buckets) > MAX_LOCAL:
            del self._buckets[next(iter(self._buckets))]  # the longest unused, which is the fullest


@dataclass(frozen=True)
class Charge:
    """What one request has paid in advance. `headers` tell the client what is left, as OpenAI's do."""

    key: str
    limits: Pair
    paid: Pair
    in_redis: bool
    headers: dict[str, str]


class Budgets:
    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError when the password file of Redis cannot be used."""
        self._limits: Pair = (settings.budget_chars_per_minute, settings.budget_audio_seconds_per_minute)
        self._metrics = metrics
        self._local = _Local()
        self._redis = connect(settings, TIMEOUT_SECONDS)
        self._script = self._redis.register_script(_SCRIPT) if self._redis else None
        self._retry_at = 0.0  # by time.monotonic
        self._settling: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Whatever is left to settle when the context ends is settled."""
        try:
            yield
        finally:
            await asyncio.gather(*self._settling)
            if self._redis:
                await self._redis.aclose()

    async def charge(self, subject: Subject, characters: int, seconds: float) -> Charge | None:
        """Pay in advance; None where the subject has no limit. Pair with `settle`.

        seconds: of audio, estimated. Raises ApiError 429 with Retry-After when this has to wait, and 400 when
        it is more than a minute's worth and would never fit.
        """
        limits = self._limits_of(subject)
        if not any(limits):
            return None
        costs = (float(characters), seconds)
        for budget, limit, cost in zip(BUDGETS, limits, costs, strict=True):
            if limit and cost > limit:
                raise ApiError(
                    400,
                    "input_exceeds_budget",
                    f"'input' makes {_amount(budget, cost)}; allowed: at most {_amount(budget, limit)}, "
                    "the whole budget for a minute.",
                    "input",
                )
        key = key_of(subject)
        in_redis, fits, used = await self._apply(key, limits, costs, force=False)
        headers = _headers(limits, used)
        if fits:
            return Charge(key, limits, costs, in_redis, headers)
        waits = [
            (amount + cost - limit) / limit * MINUTE if limit else 0.0
            for amount, cost, limit in zip(used, costs, limits, strict=True)
        ]
        scarce = waits.index(max(waits))
        wait, budget = math.ceil(waits[scarce]), BUDGETS[scarce]
        self._metrics.budget_refusals.labels(budget).inc()
        left = max(0.0, limits[scarce] - used[scarce])
        raise ApiError(
            429,
            "budget_exceeded",
            f"'input' makes {_amount(budget, costs[scarce])}, but {_amount(budget, left)} of "
            f"{_amount(budget, limits[scarce])} a minute are left; it fits in {wait} s.",
            "input",
            headers | {"Retry-After": str(wait)},
        )

    def settle(self, charge: Charge, characters: float, seconds: float) -> None:
        """Replace what was paid in advance by what was due. Returns at once and settles soon."""
        difference = (characters - charge.paid[0], seconds - charge.paid[1])
        if not charge.in_redis:
            self._local.apply(charge.key, charge.limits, difference, force=True)
        elif any(difference):
            task = asyncio.get_running_loop().create_task(self._settle(charge, difference))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle(self, charge: Charge, difference: Pair) -> None:
        # A Redis that is gone took what was paid with it, or holds on to the estimate.
        await self._in_redis(charge.key, charge.limits, difference, force=True)

    def _limits_of(self, subject: Subject) -> Pair:
        """A token may lower what the service grants, never raise it: who signs need not own the GPUs."""
        asked = (subject.budget_chars, subject.budget_seconds)
        characters, seconds = (
            min(own or math.inf, its) for own, its in zip(self._limits, asked, strict=True)
        )
        return characters if characters < math.inf else 0.0, seconds if seconds < math.inf else 0.0

    async def _apply(self, key: str, limits: Pair, costs: Pair, force: bool) -> tuple[bool, bool, Pair]:
        """Whether Redis has done it, whether it fits, and what is used now."""
        answer = await self._in_redis(key, limits, costs, force)
        if answer:
            return True, *answer
        return False, *self._local.apply(key, limits, costs, force)

    async def _in_redis(self, key: str, limits: Pair, costs: Pair, force: bool) -> tuple[bool, Pair] | None:
        """None while Redis is away."""
        now = time.monotonic()
        if self._script is None or now < self._retry_at:
            return None
        if self._retry_at:
            self._retry_at = now + RETRY_SECONDS  # one request tries, the others do not wait for it
        arguments = (int(force), limits[0], costs[0], limits[1], costs[1])
        try:
            fits, characters, seconds = await self._script(keys=[key], args=arguments)
        except (RedisError, OSError) as error:
            if not self._retry_at:
                log.warning("budgets are counted in this process alone: %s", type(error).__name__)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._metrics.budget_store_up.set(0)
            return None
        if self._retry_at:
            log.info("budgets are shared again")
        self._retry_at = 0.0
        self._metrics.budget_store_up.set(1)
        used = float(characters), float(seconds)
        self._local.note(key, used, time.monotonic())
        return bool(fits), used


def _amount(budget: str, amount: float) -> str:
    if budget == "characters":
        return f"{math.floor(amount)} characters"
    return f"about {amount:.1f} s of audio"


def _headers(limits: Pair, used: Pair) -> dict[str, str]:
    """As OpenAI's, for the limits there are.

    Source: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    headers = {}
    for budget, limit, amount in zip(BUDGETS, limits, used, strict=True):
        if limit:
            name = budget.replace("_", "-")
            headers[f"X-RateLimit-Limit-{name}"] = f"{limit:g}"
            headers[f"X-RateLimit-Remaining-{name}"] = str(max(0, math.floor(limit - amount)))
            headers[f"X-RateLimit-Reset-{name}"] = _duration(amount / limit * MINUTE)
    return headers


def _duration(seconds: float) -> str:
    """In the way of Go, as OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
