"""Who speaks next, and who is told at once that it would take too long.

A synthesis is admitted with a ticket, and then takes a lane of the engine for each of its segments. Lanes go
  1. to real-time syntheses before batch ones, which only take lanes that no real-time one can want soon, and
     never more than three in four;
  2. to the segment that a synthesis needs next, before those that could be spoken ahead;
  3. among tenants, to the one that has been spoken for least, in seconds of audio since it became busy;
  4. within a tenant, to the listener who would be the first to hear silence.
Nothing is preempted: who waits at the head waits at most for the end of a segment.

What is refused is refused when it comes, from an estimate of the work ahead, and told when to try again.
"""

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from maya1_tts import tracing
from maya1_tts.errors import ApiError
from maya1_tts.metrics import Metrics

Priority = Literal["realtime", "batch"]
OBJECTIVE_SECONDS = 0.2  # within this, a listener should hear the first sound
# A tenant may hold this many times what is left for everybody: one that floods the queue leaves a fifth of it
# to others (Choudhury and Hahne, Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, 1998).
SHARE = 4
# An engine that speaks several segments at once slows each of them down. Lanes are taken away while a segment
# takes more than TOO_SLOW of its own duration, and given back below FAST_ENOUGH.
TOO_SLOW, FAST_ENOUGH = 0.8, 0.6
# A queue that has not been empty for this long will not go away by waiting (Maurer, Fail at Scale, ACM Queue
# 13(8), 2015). It is over when for as long there has been none, and nobody was refused either.
STANDING_SECONDS = 1.0
LONGEST_SEGMENT = 14.0  # about, in seconds of audio
SMOOTHING = 0.2  # weight of the newest segment in the estimate of the engine's speed


@dataclass(frozen=True)
class Claim:
    """Whose request it is and how urgent. Its turn is of no use after `deadline`, by time.monotonic.

    listening: somebody hears it while it is made, and does not wait for the whole.
    """

    tenant: str = ""
    priority: Priority = "realtime"
    deadline: float = math.inf
    listening: bool = True

    def joined_by(self, other: "Claim") -> "Claim":
        """For a synthesis that two wait for: as urgent as the more urgent, as patient as the more patient."""
        priority: Priority = "batch" if self.priority == other.priority == "batch" else "realtime"
        deadline = max(self.deadline, other.deadline)
        return Claim(self.tenant, priority, deadline, self.listening or other.listening)


class Ticket:
    """One admitted synthesis. `estimate` and `spoken` are seconds of audio."""

    def __init__(self, claim: Claim, estimate: float, clock: Callable[[], float]) -> None:
        self.claim = claim
        self.estimate = estimate
        self.spoken = 0.0
        self.arrived = clock()
        self.turns: set[Turn] = set()
        self.current = 0  # the number of the segment that is needed next
        self._clock = clock
        self._heard_from: float | None = None

    def spoke(self, seconds: float) -> None:
        """That much more audio is on its way to the listener."""
        if self._heard_from is None:
            self._heard_from = self._clock()
        self.spoken += seconds

    @property
    def tenant(self) -> str:
        return self.claim.tenant

    @property
    def realtime(self) -> bool:
        return self.claim.priority == "realtime"

    @property
    def begun(self) -> bool:
        return self._heard_from is not None

    @property
    def queued(self) -> bool:
        """Whether it holds no lane."""
        return all(turn.granted is None for turn in self.turns)

    @property
    def next_segment(self) -> float:
        """About how long the segment is that it needs next, in seconds of audio."""
        longest = min(self.remaining, LONGEST_SEGMENT)  # while the text is being cut
        return next((turn.seconds for turn in self.turns if not turn.ahead), longest)

    @property
    def remaining(self) -> float:
        return max(self.estimate - self.spoken, 0.0)

    @property
    def due(self) -> float:
        """When the listener has heard all that was made so far; at first, when the first sound is wanted."""
        if self._heard_from is None:
            return self.arrived + OBJECTIVE_SECONDS
        return self._heard_from + self.spoken


class Turn:
    """A segment of about `seconds` of audio that waits for a lane, or holds one since `granted`."""

    def __init__(self, ticket: Ticket, seconds: float, number: int) -> None:
        self.ticket = ticket
        self.seconds = seconds
        self.number = number
        self.spoken = 0.0
        self.granted: float | None = None
        self.batch = False  # whether it counts as batch work once it has its lane
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def ahead(self) -> bool:
        """Whether its synthesis still speaks an earlier one."""
        return self.number > self.ticket.current

    def spoke(self, seconds: float) -> None:
        """That much more audio has been made."""
        self.spoken += seconds
        self.ticket.spoke(seconds)


class Admission:
    """Hands out an engine's lanes. All methods belong to one event loop."""

    def __init__(
        self,
        lanes: int,
        queue_limit: int,
        queue_seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """lanes: segments that the engine can speak at once. queue_limit: real-time syntheses that may wait.
        queue_seconds: how long all admitted work may take, estimated.
        """
        self._max_lanes = self.lanes = lanes
        self._queue_limit, self._queue_seconds = queue_limit, queue_seconds
        self._metrics, self._now = metrics, clock
        self._tickets: set[Ticket] = set()
        self._waiting: list[Turn] = []
        self._active = self._active_batch = 0
        self._served: dict[str, float] = {}  # seconds of audio by tenant; only the differences matter
        self._rtf = (
            0.0  # seconds that a segment takes per second of its audio, while others are spoken beside it
        )
        self._since_change = 0
        # Since when there has always been one who waits for a first lane.
        self._queue_since: float | None = None
        self._crowded_until = -math.inf
        metrics.active.set_function(lambda: self._active)
        metrics.queue_depth.set_function(lambda: sum(ticket.queued for ticket in self._tickets))
        metrics.backlog_seconds.set_function(lambda: self.backlog)
        metrics.workers.set_function(lambda: self.lanes)

    @property
    def active(self) -> int:
        """Lanes that are held."""
        return self._active

    @property
    def crowded(self) -> bool:
        """Whether more is asked for than the engine can speak, and not for a moment only."""
        return self._standing or self._now() < self._crowded_until

    @property
    def _standing(self) -> bool:
        """Whether somebody has waited for a first sound, one after another, for longer than a moment."""
        return self._queue_since is not None and self._now() - self._queue_since > STANDING_SECONDS

    @property
    def backlog(self) -> float:
        """Seconds until all admitted real-time work is done, estimated."""
        return self._work(sum(ticket.remaining for ticket in self._tickets if ticket.realtime))

    def admit(self, claim: Claim, estimate: float) -> Ticket:
        """A ticket for about `estimate` seconds of audio; pair with `leave`.

        Batch work is always admitted: who starts it bounds it. Raises ApiError 429 or 503 with Retry-After.
        """
        ticket = Ticket(claim, estimate, self._now)
        if ticket.realtime:
            self._refuse_overload(ticket)
        if ticket.tenant not in self._served:
            # Whoever was away has saved up nothing: all start level with the least served.
            self._served[ticket.tenant] = min(self._served.values(), default=0.0)
        self._tickets.add(ticket)
        self._watch_queue()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
        if not any(other.tenant == ticket.tenant for other in self._tickets):
            del self._served[ticket.tenant]
        self._next()

    @contextlib.asynccontextmanager
    async def lane(self, ticket: Ticket, seconds: float, number: int = 0) -> AsyncIterator[Turn]:
        """Hold a lane for the ticket's segment of this number, of about `seconds` of audio.

        Raises ApiError 503 when the ticket's first one would come after its deadline.
        """
        turn = Turn(ticket, seconds, number)
        ticket.turns.add(turn)
        self._waiting.append(turn)
        self._next()
        try:
            with tracing.span("admission"):
                await self._granted(turn)
            if not ticket.begun:
                self._metrics.queue_seconds.observe(self._now() - ticket.arrived)
            yield turn
        finally:
            self._give_back(turn)

    async def _granted(self, turn: Turn) -> None:
        timer, ticket = None, turn.ticket
        if not ticket.begun and ticket.claim.deadline < math.inf:
            left = ticket.claim.deadline - self._now()
            timer = asyncio.get_running_loop().call_later(left, self._expire, turn)
        try:
            await turn.came
        finally:
            if timer:
                timer.cancel()

    def _expire(self, turn: Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
            turn.came.set_exception(
                self._refusal(503, "deadline_exceeded", "No lane came free before this request's deadline.")
            )

    def _give_back(self, turn: Turn) -> None:
        turn.ticket.turns.remove(turn)
        if turn in self._waiting:
            self._waiting.remove(turn)
        if turn.granted is None:
            return
        if turn.spoken:
            self._learn((self._now() - turn.granted) / turn.spoken)
        self._active -= 1
        self._active_batch -= turn.batch
        self._next()

    def _watch_queue(self) -> None:
        if self._standing:
            self._crowded_until = self._now() + STANDING_SECONDS
        if not any(one.realtime and one.queued and not one.begun for one in self._tickets):
            self._queue_since = None
        elif self._queue_since is None:
            self._queue_since = self._now()

    def _next(self) -> None:
        """Give free lanes away."""
        self._give_lanes()
        self._watch_queue()

    def _give_lanes(self) -> None:
        while self._active < self.lanes and self._waiting:
            # A real-time synthesis between two of its segments waits for nothing, but is about to.
            realtime = sum(ticket.realtime for ticket in self._tickets)
            most = min(max(1, self.lanes - math.ceil(self.lanes / 4)), self.lanes - realtime)
            batch_may = self._active_batch < most
            candidates = [
                turn
                for turn in self._waiting
                if (turn.ticket.realtime or batch_may) and not turn.came.cancelled()
            ]
            if not candidates:
                return
            chosen = min(candidates, key=self._order)
            self._waiting.remove(chosen)
            chosen.batch = not chosen.ticket.realtime
            self._active += 1
            self._active_batch += chosen.batch
            chosen.granted = self._now()
            self._served[chosen.ticket.tenant] += chosen.seconds
            chosen.came.set_result(None)

    def _order(self, turn: Turn) -> tuple[bool, bool, float, float]:
        ticket = turn.ticket
        return not ticket.realtime, turn.ahead, self._served[ticket.tenant], ticket.due

    def _learn(self, rtf: float) -> None:
        """Keep the estimate of the engine's speed, and the lanes to what it can speak in real time."""
        self._rtf = rtf if self._rtf == 0.0 else (1 - SMOOTHING) * self._rtf + SMOOTHING * rtf
        self._since_change += 1
        if self._since_change < self.lanes:  # until each lane has had its say, the last change does not show
            return
        if self._rtf > TOO_SLOW and self._active == self.lanes > 1:
            self.lanes = max(1, int(self.lanes * 0.9))
        elif self._rtf < FAST_ENOUGH and self._waiting and self.lanes < self._max_lanes:
            self.lanes += 1
        else:
            return
        self._since_change = 0

    def _work(self, audio_seconds: float) -> float:
        return audio_seconds * self._rtf / self.lanes

    def _refuse_overload(self, ticket: Ticket) -> None:
        others = [other for other in self._tickets if other.realtime]
        free = self.lanes + self._queue_limit - len(others)
        if free <= 0:
            raise self._refusal(
                503, "overloaded", f"{len(others)} syntheses are running or waiting, which is the limit."
            )
        own = sum(other.tenant == ticket.tenant for other in others)
        if own >= SHARE * free:
            raise self._refusal(
                429,
                "too_many_requests",
                f"{own} syntheses of yours are running or waiting; what is left is kept for others.",
            )
        backlog = self.backlog
        if others and backlog + self._work(ticket.estimate) > self._queue_seconds:
            raise self._refusal(
                503,
                "overloaded",
                f"The work that was accepted takes about {backlog:.0f} s more; the limit is "
                f"{self._queue_seconds:g} s.",
            )
        wait = self._wait(ticket)
        if self._now() + wait > ticket.claim.deadline:
            raise self._refusal(
                503,
                "deadline_exceeded",
                f"Its turn would come in about {wait:.1f} s, after this request's deadline.",
            )

    def _wait(self, newcomer: Ticket) -> float:
        """Seconds until a lane is free for the newcomer, estimated.

        As if whoever is before it took the lane that is free first, once. Text that is still being cut into
        segments counts too.
        """
        now = self._now()
        free = [
            max(turn.granted + turn.seconds * self._rtf - now, 0.0)
            for ticket in self._tickets
            for turn in ticket.turns
            if turn.granted is not None
        ]
        free += [0.0] * (self.lanes - len(free))
        heapq.heapify(free)
        for one in self._tickets:
            if one.queued and one.realtime and one.due <= newcomer.due:
                heapq.heapreplace(free, free[0] + one.next_segment * self._rtf)
        return free[0]

    def _refusal(self, status: int, code: str, message: str) -> ApiError:
        """Come back when about one synthesis has ended."""
        if self.crowded:
            self._crowded_until = self._now() + STANDING_SECONDS
        self._metrics.refusals.labels(code).inc()
        wait = max(1, math.ceil(self.backlog / max(1, len(self._tickets))))
        return ApiError(status, code, f"{message} Try again in {wait} s.", headers={"Retry-After": str(wait)})
