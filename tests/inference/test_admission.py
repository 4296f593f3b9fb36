"""Who speaks next and who is refused, on a clock that the tests move."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from maya1_tts.admission import Admission, Claim, Ticket, Turn
from maya1_tts.errors import ApiError
from maya1_tts.metrics import Metrics


class Hall:
    """An admission of which each lane is held until a test says that the segment has been spoken."""

    def __init__(self, lanes: int = 1, queue_limit: int = 100, queue_seconds: float = 1000) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.admission = Admission(lanes, queue_limit, queue_seconds, self.metrics, lambda: self.now)
        self.speaking: list[tuple[str, Turn, asyncio.Event]] = []
        self.spoken: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def ticket(
        self, tenant: str = "", *, estimate: float = 1, batch: bool = False, deadline: float = math.inf
    ) -> Ticket:
        return self.admission.admit(Claim(tenant, "batch" if batch else "realtime", deadline), estimate)

    async def wants(
        self, name: str, ticket: Ticket, segments: int = 1, seconds: float = 1, last: bool = True
    ) -> asyncio.Task[None]:
        """Let the ticket's segments wait for lanes. last: no more will come of it."""

        async def speak() -> None:
            try:
                for number in range(1, segments + 1):
                    async with self.admission.lane(ticket, seconds) as turn:
                        spoken = asyncio.Event()
                        self.speaking.append((f"{name}{number}" if segments > 1 else name, turn, spoken))
                        await spoken.wait()
            finally:
                if last:
                    self.admission.leave(ticket)

        self.tasks.append(asyncio.create_task(speak()))
        await settle()
        return self.tasks[-1]

    async def finish(self, seconds: float = 1, took: float = 0.1) -> None:
        """Who has held a lane for longest has made `seconds` of audio; `took` seconds have passed."""
        name, turn, spoken = self.speaking.pop(0)
        self.now += took
        turn.spoke(seconds)
        self.spoken.append(name)
        spoken.set()
        await settle()

    async def finish_all(self) -> list[str]:
        while self.speaking:
            await self.finish()
        return self.spoken

    async def knows_its_speed(self, rtf: float) -> None:
        ticket = self.ticket()
        await self.wants("warm-up", ticket)
        await self.finish(seconds=1, took=rtf)
        self.spoken.clear()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def wrapper() -> None:
        async def body() -> None:
            async with everything_ended():
                await test()

        asyncio.run(body())

    wrapper.__name__ = test.__name__  # type: ignore[attr-defined]
    return wrapper


@contextlib.asynccontextmanager
async def everything_ended() -> AsyncIterator[None]:
    yield
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@run
async def test_real_time_goes_before_batch() -> None:
    hall = Hall()
    await hall.wants("first", hall.ticket())
    await hall.wants("batch", hall.ticket(batch=True))
    await hall.wants("realtime", hall.ticket())
    assert await hall.finish_all() == ["first", "realtime", "batch"]


@run
async def test_batch_does_not_slip_in_between_two_segments() -> None:
    hall = Hall()
    realtime = hall.ticket()
    await hall.wants("one", realtime, last=False)
    await hall.wants("batch", hall.ticket(batch=True))
    await hall.finish()
    assert not hall.speaking
    await hall.wants("two", realtime)
    assert await hall.finish_all() == ["one", "two", "batch"]


@run
async def test_batch_leaves_a_quarter_of_the_lanes() -> None:
    hall = Hall(lanes=4)
    for number in range(6):
        await hall.wants(f"batch {number}", hall.ticket(batch=True))
    assert len(hall.speaking) == 3
    await hall.wants("realtime", hall.ticket())
    assert len(hall.speaking) == 4
    assert hall.speaking[-1][0] == "realtime"


@run
async def test_batch_alone_may_use_the_only_lane() -> None:
    hall = Hall(lanes=1)
    await hall.wants("batch", hall.ticket(batch=True))
    assert await hall.finish_all() == ["batch"]


@run
async def test_a_tenant_with_many_requests_gets_no_more_than_one_with_few() -> None:
    hall = Hall()
    await hall.wants("running", hall.ticket("other"))
    for number in range(4):
        await hall.wants(f"many{number}", hall.ticket("many"))
    for number in range(2):
        await hall.wants(f"few{number}", hall.ticket("few"))
    order = await hall.finish_all()
    assert sorted(order[1:5]) == ["few0", "few1", "many0", "many1"]


@run
async def test_a_tenant_that_was_away_has_not_saved_up_turns() -> None:
    hall = Hall()
    steady = hall.ticket("steady")
    await hall.wants("steady", steady, segments=8)
    for _ in range(4):
        await hall.finish()
    await hall.wants("newcomer", hall.ticket("newcomer"), segments=4)
    for _ in range(4):
        await hall.finish()
    assert [name.rstrip("12345678") for name in hall.spoken[-4:]].count("steady") == 2


@run
async def test_within_a_tenant_the_listener_who_runs_dry_first_is_served_first() -> None:
    hall = Hall()
    await hall.wants("blocker", hall.ticket())
    ahead, behind = hall.ticket(), hall.ticket()
    ahead.spoke(10)
    behind.spoke(1)
    await hall.wants("ahead", ahead)
    await hall.wants("behind", behind)
    await hall.wants("new", hall.ticket())
    assert await hall.finish_all() == ["blocker", "new", "behind", "ahead"]


@run
async def test_more_than_the_queue_holds_is_refused_with_a_time_to_come_back() -> None:
    hall = Hall(lanes=1, queue_limit=2)
    await hall.knows_its_speed(0.5)
    for tenant in "abc":
        hall.ticket(tenant, estimate=20)
    with pytest.raises(ApiError) as refused:
        hall.ticket("d")
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers["Retry-After"] == "10"  # 20 s of audio each, at half real time
    assert hall.metrics.registry.get_sample_value("maya1_tts_refusals_total", {"code": "overloaded"}) == 1


@run
async def test_one_tenant_cannot_fill_the_queue() -> None:
    hall = Hall(lanes=2, queue_limit=18)
    for _ in range(16):
        hall.ticket("flood")
    with pytest.raises(ApiError) as refused:
        hall.ticket("flood")
    assert (refused.value.status, refused.value.code) == (429, "too_many_requests")
    assert int(refused.value.headers["Retry-After"]) >= 1
    for _ in range(3):
        hall.ticket("somebody else")


@run
async def test_the_queue_is_bounded_in_seconds_of_work() -> None:
    hall = Hall(lanes=2, queue_seconds=10)
    await hall.knows_its_speed(0.5)
    hall.ticket(estimate=30)  # 7.5 s on two lanes
    assert hall.metrics.registry.get_sample_value("maya1_tts_backlog_seconds") == 7.5
    with pytest.raises(ApiError) as refused:
        hall.ticket(estimate=30)
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    hall.ticket(estimate=8)


@run
async def test_one_long_text_is_accepted_by_an_idle_engine() -> None:
    hall = Hall(queue_seconds=10)
    await hall.knows_its_speed(1.0)
    hall.ticket(estimate=300)


@run
async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    hall = Hall()
    await hall.knows_its_speed(1.0)
    await hall.wants("running", hall.ticket())
    for _ in range(3):
        await hall.wants("waiting", hall.ticket(), seconds=4)
    with pytest.raises(ApiError) as refused:
        hall.ticket(deadline=hall.now + 11)
    assert (refused.value.status, refused.value.code) == (503, "deadline_exceeded")
    hall.ticket(deadline=hall.now + 13)


@run
async def test_a_lane_that_is_free_in_time_is_worth_waiting_for() -> None:
    hall = Hall(lanes=2)
    await hall.knows_its_speed(1.0)
    await hall.wants("long", hall.ticket(), seconds=10)
    hall.ticket(deadline=hall.now)  # the second lane is free
    await hall.wants("short", hall.ticket(), seconds=3)
    hall.now += 1
    with pytest.raises(ApiError) as refused:
        hall.ticket(deadline=hall.now + 2.9)  # the first that waits goes before
    assert refused.value.code == "deadline_exceeded"


@run
async def test_a_queue_that_does_not_empty_for_a_while_is_a_crowd() -> None:
    hall = Hall()
    await hall.wants("running", hall.ticket(), segments=2)
    hall.now += 5
    assert not hall.admission.crowded  # nobody waits for a first sound
    await hall.wants("one", hall.ticket())
    hall.now += 0.9
    await hall.wants("two", hall.ticket())
    assert not hall.admission.crowded
    hall.now += 0.2
    assert hall.admission.crowded
    assert await hall.finish_all() == ["running1", "one", "two", "running2"]
    assert hall.admission.crowded  # until it has been away for as long
    hall.now += 1.1
    assert not hall.admission.crowded


@run
async def test_a_crowd_stays_one_while_somebody_is_refused() -> None:
    """Those who are let in then leave no queue, but it would be there again if more were let in."""
    hall = Hall()
    await hall.knows_its_speed(1.0)
    await hall.wants("running", hall.ticket())
    await hall.wants("waiting", hall.ticket())
    hall.now += 1.1
    assert await hall.finish_all() == ["running", "waiting"]
    for _ in range(5):
        hall.now += 0.8
        await hall.wants("alone", hall.ticket(estimate=5))
        with pytest.raises(ApiError):
            hall.ticket(deadline=hall.now + 0.3)
        await hall.finish_all()
        assert hall.admission.crowded
    hall.now += 1.1
    assert not hall.admission.crowded


@run
async def test_a_text_that_is_still_being_cut_counts_as_waiting() -> None:
    hall = Hall()
    await hall.knows_its_speed(1.0)
    hall.ticket(estimate=3)
    with pytest.raises(ApiError):
        hall.ticket(deadline=hall.now + 2.9)
    hall.ticket(deadline=hall.now + 3.1)


@run
async def test_segments_that_are_not_needed_yet_take_only_what_nobody_wants() -> None:
    hall = Hall(lanes=2)
    whole, other = hall.ticket(), hall.ticket()

    async def ahead(number: int) -> None:
        async with hall.admission.lane(whole, 1, number) as turn:
            spoken = asyncio.Event()
            hall.speaking.append((f"ahead{number}", turn, spoken))
            await spoken.wait()

    await hall.wants("whole", whole, last=False)
    hall.tasks += [asyncio.create_task(ahead(number)) for number in (1, 2)]
    await settle()
    assert [name for name, _, _ in hall.speaking] == ["whole", "ahead1"]
    await hall.wants("other", other)
    assert hall.metrics.registry.get_sample_value("maya1_tts_queue_depth") == 1
    assert await hall.finish_all() == ["whole", "ahead1", "other", "ahead2"]


@run
async def test_a_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    hall = Hall()
    await hall.wants("running", hall.ticket())
    late = await hall.wants("late", hall.ticket(deadline=hall.now + 0.01))
    with pytest.raises(ApiError) as refused:
        await late
    assert refused.value.code == "deadline_exceeded"
    assert await hall.finish_all() == ["running"]


@run
async def test_a_deadline_is_for_the_first_sound_only() -> None:
    hall = Hall()
    ticket = hall.ticket(deadline=hall.now + 0.01)
    await hall.wants("talk", ticket, segments=3)
    hall.now += 100
    assert await hall.finish_all() == ["talk1", "talk2", "talk3"]


@run
async def test_a_synthesis_becomes_real_time_when_somebody_joins_who_is() -> None:
    hall = Hall()
    await hall.wants("running", hall.ticket())
    joined, batch = hall.ticket(batch=True), hall.ticket(batch=True)
    await hall.wants("batch", batch)
    await hall.wants("joined", joined)
    joined.claim = joined.claim.joined_by(Claim("", "realtime"))
    assert await hall.finish_all() == ["running", "joined", "batch"]


@run
async def test_whoever_leaves_loses_no_lane() -> None:
    hall = Hall()
    running = await hall.wants("running", hall.ticket())
    leaving = [await hall.wants("leaving", hall.ticket()) for _ in range(3)]
    await hall.wants("staying", hall.ticket())
    for task in (running, *leaving):  # all in the same moment, while the lane comes free
        task.cancel()
    await settle()
    assert [name for name, _, _ in hall.speaking] == ["running", "staying"]


@run
async def test_a_lane_that_comes_in_the_moment_of_leaving_goes_to_the_next() -> None:
    hall = Hall()
    await hall.wants("running", hall.ticket())
    leaving = await hall.wants("leaving", hall.ticket())
    await hall.wants("next", hall.ticket())
    hall.speaking[0][2].set()
    granted = hall.admission._waiting[0].came
    while not granted.done():
        await asyncio.sleep(0)
    leaving.cancel()
    await settle()
    assert [name for name, _, _ in hall.speaking] == ["running", "next"]


@run
async def test_lanes_adapt_to_what_the_engine_speaks_in_real_time() -> None:
    hall = Hall(lanes=20, queue_limit=1000)
    for number in range(200):
        await hall.wants(str(number), hall.ticket(str(number)))
    for _ in range(60):  # 20 at a time, each slower than real time
        await hall.finish(seconds=1, took=0.1)
    slow = hall.admission.lanes
    assert slow < 20
    assert len(hall.speaking) == slow
    for _ in range(140):
        await hall.finish(seconds=1, took=0.001)
    assert hall.admission.lanes > slow
