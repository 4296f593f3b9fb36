"""Batch jobs on a real Redis: submitted once, spoken at least once, seen by their owner alone."""

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Redis, Service, token, wait_for
from gate import Running
from test_api import expect_error

BODY = {"model": "tts-1", "voice": "joe", "input": "One sentence. And another.", "response_format": "wav"}
JSON = {"Content-Type": "application/json"}
names = (f"subject-{number}" for number in itertools.count())


class Subject:
    """Somebody with a token of their own, who works with jobs."""

    def __init__(self, url: str) -> None:
        bearer = token(sub=next(names), scope="jobs")
        self.http = httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {bearer}"})

    def submit(self, key: str | None = None, **changed: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return self.http.post("/v1/audio/jobs", json=BODY | changed, headers=headers)

    def job(self, id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/audio/jobs/{id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until(self, id: str, status: str) -> dict[str, Any]:
        wait_for(lambda: self.job(id)["status"] == status, f"the job is {status}")
        return self.job(id)

    def result(self, id: str) -> httpx.Response:
        return self.http.get(f"/v1/audio/jobs/{id}/result")

    def delete(self, id: str) -> httpx.Response:
        return self.http.delete(f"/v1/audio/jobs/{id}")

    def ids(self, **page: Any) -> list[str]:
        return [job["id"] for job in self.http.get("/v1/audio/jobs", params=page).json()["data"]]


@pytest.fixture
def subject(service: Service) -> Subject:
    return Subject(service.url)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
def gate(redis: Redis) -> Iterator[Running]:
    running = opened(redis)
    yield running
    running.stop()


def opened(redis: Redis) -> Running:
    return loading(redis).get_ready()


def loading(redis: Redis) -> Running:
    return Running(redis_url=redis.url, model_aliases="tts-1", jobs_per_subject=3, queue_limit=2)


def words(text: str, **changed: Any) -> dict[str, Any]:
    return {"input": text, "voice": "tone", "response_format": "pcm"} | changed


def test_a_job_is_spoken_and_fetched(service: Service, subject: Subject) -> None:
    answer = subject.submit(metadata={"chapter": "1"}, timestamps="segment", speed=1.1)
    assert answer.status_code == 202
    job = answer.json()
    assert job["status"] in ("queued", "running")
    assert answer.headers["location"] == f"/v1/audio/jobs/{job['id']}"
    done = subject.until(job["id"], "succeeded")
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] < done["expires_at"]
    assert (done["metadata"], done["error"]) == ({"chapter": "1"}, None)
    assert [segment["text"] for segment in done["audio"]["segments"]] == ["One sentence.", "And another."]
    result = subject.result(job["id"])
    assert result.headers["content-type"] == "audio/wav"
    assert result.content == service.speak(BODY["input"], speed=1.1, response_format="wav").content
    assert done["audio"]["audio_seconds"] == pytest.approx((len(result.content) - 44) / 2 / 22050, abs=1e-5)
    lines = map(json.loads, service.log.splitlines())
    (line,) = (line for line in lines if line.get("request_id") == job["id"])
    assert (line["logger"], line["outcome"], line["chars"]) == ("maya1_tts.audit", "done", 26)
    assert line["subject"].startswith("subject-")
    assert subject.delete(job["id"]).json()["status"] == "deleted"
    for answer in (subject.http.get(f"/v1/audio/jobs/{job['id']}"), subject.result(job["id"])):
        expect_error(answer, 404, "job_not_found")
    assert subject.ids() == []


def test_a_key_names_one_job_of_one_subject(service: Service, subject: Subject) -> None:
    first = subject.submit(key="chapter-1").json()["id"]
    other_spelling = json.dumps(BODY, indent=1, sort_keys=True)
    again = subject.http.post(
        "/v1/audio/jobs", content=other_spelling, headers=JSON | {"Idempotency-Key": "chapter-1"}
    )
    assert (again.status_code, again.json()["id"]) == (202, first)
    expect_error(subject.submit(key="chapter-1", speed=2), 409, "idempotency_conflict")
    assert subject.submit(key="chapter-2").json()["id"] != first
    assert Subject(service.url).submit(key="chapter-1").json()["id"] != first
    assert len(subject.ids()) == 2
    expect_error(subject.submit(key="x" * 256), 400, "invalid_value")


def test_nobody_else_sees_a_job(service: Service, subject: Subject) -> None:
    id = subject.submit().json()["id"]
    other = Subject(service.url)
    for answer in (other.http.get(f"/v1/audio/jobs/{id}"), other.result(id), other.delete(id)):
        expect_error(answer, 404, "job_not_found")
    assert other.ids() == []
    assert subject.ids() == [id]
    expect_error(service.http.get(f"/v1/audio/jobs/{id}"), 403, "insufficient_scope")


def test_jobs_are_listed_newest_first_in_pages(service: Service, subject: Subject) -> None:
    ids = [subject.submit(key=str(number)).json()["id"] for number in range(5)]
    assert sorted(subject.ids()) == sorted(ids)
    listed = subject.ids()
    page = subject.http.get("/v1/audio/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (listed[:2], True)
    page = subject.http.get("/v1/audio/jobs", params={"limit": 3, "after": listed[1]}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (listed[2:], False)
    assert listed[0] == ids[-1] or subject.job(listed[0])["created_at"] == subject.job(ids[-1])["created_at"]
    expect_error(subject.http.get("/v1/audio/jobs", params={"after": "job_none"}), 404, "job_not_found")
    expect_error(subject.http.get("/v1/audio/jobs", params={"limit": 0}), 400, "invalid_value")


def test_wrong_jobs_are_refused_at_once(subject: Subject) -> None:
    assert subject.submit(input="word " * 4000).status_code == 202  # longer than realtime allows
    expect_error(subject.submit(input="a" * 20_001), 400, "input_too_long")
    expect_error(subject.submit(stream=True), 400, "unknown_parameter")
    expect_error(subject.submit(voice="alloy"), 404, "voice_not_found")
    expect_error(subject.submit(metadata={"n": 1}), 400, "invalid_value")
    expect_error(subject.submit(metadata={str(n): "" for n in range(17)}), 400, "invalid_value")
    for id in subject.ids():
        assert subject.delete(id).json()["status"] == "cancelled"


def test_states_on_the_way(gate: Running) -> None:
    subject = Subject(str(gate.http.base_url))
    first = subject.submit(**words("one two")).json()["id"]
    wait_for(lambda: gate.metric("active_syntheses") == 1, "the first job has the lane")
    second = subject.submit(**words("three")).json()["id"]
    assert subject.until(first, "running")["finished_at"] is None
    assert subject.job(second)["status"] == "queued"
    expect_error(subject.result(first), 409, "job_not_ready")
    assert subject.delete(second).json()["status"] == "cancelled"
    assert subject.job(second)["status"] == "cancelled"
    expect_error(subject.result(second), 409, "job_not_ready")
    assert subject.delete(first).json()["status"] == "cancelled"
    wait_for(lambda: gate.outcomes("cancelled") == 1, "a cancelled job is not spoken any further")
    third = subject.submit(**words("explode")).json()["id"]
    expect_error(subject.submit(**words("too many")), 429, "too_many_jobs")
    gate.engine.permits.release(1)
    assert subject.until(third, "failed")["error"]["code"] == "synthesis_failed"
    assert gate.engine.spoken[3:] == []
    assert subject.delete(first).json()["status"] == "deleted"
    fourth = subject.submit(**words("four")).json()["id"]
    gate.engine.permits.release(1)
    subject.until(fourth, "succeeded")
    assert len(subject.result(fourth).content) == 1600


def test_realtime_requests_go_first(gate: Running) -> None:
    subject = Subject(str(gate.http.base_url))
    id = subject.submit(**words("j1 j2 j3")).json()["id"]
    wait_for(lambda: gate.metric("active_syntheses") == 1, "the job has the lane")
    listeners = [gate.in_background(text) for text in ("n1", "n2")]
    wait_for(lambda: gate.metric("queue_depth") == 2, "both requests wait")
    gate.engine.permits.release(5)
    for listener in listeners:
        listener.join()
    subject.until(id, "succeeded")
    spoken = gate.engine.spoken[3:]
    assert (spoken[0], set(spoken[1:3]), spoken[3:]) == ("j1", {"n1", "n2"}, ["j2", "j3"])


def test_a_process_that_stops_hands_its_jobs_on(redis: Redis) -> None:
    leaving = opened(redis)
    try:
        subject = Subject(str(leaving.http.base_url))
        id = subject.submit(**words("one two")).json()["id"]
        subject.until(id, "running")
    finally:
        leaving.stop(unfinished=True)
    assert leaving.engine.spoken[3:] == []
    staying = loading(redis)
    try:
        subject.http.base_url = str(staying.http.base_url)
        assert subject.job(id)["status"] == "queued"  # given back, not left to a lease that runs out
        staying.get_ready().engine.permits.release(2)
        subject.until(id, "succeeded")
        assert staying.engine.spoken[3:] == ["one", "two"]
    finally:
        staying.stop()


def test_a_job_outlives_a_process_that_is_killed(redis: Redis, tmp_path: Path) -> None:
    killed = Service(tmp_path, ENVIRONMENT="development", AUTH="none", REDIS_URL=redis.url, WORKERS=1)
    try:
        killed.wait_until_ready()
        subject = Subject(killed.url)
        long = words("A rather long text. " * 100, voice=None)
        id = subject.submit(**long).json()["id"]
        subject.until(id, "running")
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait()
    finally:
        killed.stop()
    other = opened(redis)
    try:
        subject.http.base_url = str(other.http.base_url)
        assert subject.job(id)["status"] == "running"
        other.engine.permits.release(400)
        subject.until(id, "succeeded")
        assert len(subject.result(id).content) == 400 * 1600
    finally:
        other.stop()


def test_without_redis_there_are_no_jobs_but_speech(redis: Redis) -> None:
    gate = opened(redis)
    try:
        subject = Subject(str(gate.http.base_url))
        id = subject.submit(**words("one")).json()["id"]
        subject.until(id, "running")
        redis.kill()
        expect_error(subject.submit(**words("one")), 503, "jobs_unavailable")
        expect_error(subject.http.get(f"/v1/audio/jobs/{id}"), 503, "jobs_unavailable")
        gate.engine.permits.release(2)
        assert gate.http.send(gate.request("one", stream=False)).status_code == 200
    finally:
        gate.stop()
