"""Batch jobs: submit now, fetch later."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from maya1_tts.api.access import allowed
from maya1_tts.api.document import Failure, audio, body, errors
from maya1_tts.api.service import Service
from maya1_tts.api.speech import Segment
from maya1_tts.audio import MEDIA_TYPES, Format
from maya1_tts.jobs import Job, Status
from maya1_tts.request import JobRequest, parse, read_body, to_order


class JobAudio(BaseModel):
    engine: str
    voice: str
    sample_rate: int
    audio_seconds: float
    rtf: float
    cache: str
    bytes: int
    segments: list[Segment] | None


class JobStatus(BaseModel):
    """Times are seconds since the epoch."""

    id: str
    object: Literal["audio.job"] = "audio.job"
    status: Status
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    response_format: Format
    characters: int
    metadata: dict[str, str]
    audio: JobAudio | None
    error: Failure | None


class JobPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobStatus]
    has_more: bool


class JobDeleted(BaseModel):
    id: str
    object: Literal["audio.job"] = "audio.job"
    status: Literal["cancelled", "deleted"]


Key = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[!-~]+$")
]
REDIS = (401, 403, 503)


def job_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/audio/jobs", dependencies=[allowed(service, "jobs")])
    jobs, settings = service.jobs, service.settings

    @router.post(
        "",
        status_code=202,
        responses=errors(400, 404, 409, 413, 415, 429, 507, *REDIS),
        openapi_extra=body(JobRequest, settings.job_max_input_chars),
    )
    async def submit(request: Request, response: Response, key: Key = None) -> JobStatus:
        content = await read_body(request, settings.max_body_bytes)
        asked = parse(content, request.headers.get("content-type", ""), JobRequest)
        to_order(asked, settings, service.engine, settings.job_max_input_chars)  # what is wrong is said now
        job = await jobs.submit(request.state.subject, asked, key)
        request.state.log |= {"job": job.id, "chars": len(asked.input)}
        response.headers["Location"] = f"/v1/audio/jobs/{job.id}"
        return _status(job)

    @router.get("", responses=errors(400, 404, *REDIS))
    async def page(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> JobPage:
        found, more = await jobs.page(request.state.subject, limit, after)
        return JobPage(data=[_status(job) for job in found], has_more=more)

    @router.get("/{id}", responses=errors(404, *REDIS))
    async def status(request: Request, id: str) -> JobStatus:
        return _status(await jobs.get(request.state.subject, id))

    @router.get(
        "/{id}/result",
        response_class=Response,
        responses=audio("The audio.") | errors(404, 409, 410, *REDIS),
    )
    async def result(request: Request, id: str) -> Response:
        job = await jobs.get(request.state.subject, id)
        content = await jobs.audio(job)
        told = job.json("audio")
        headers = {
            "X-Engine": told["engine"],
            "X-Voice": told["voice"],
            "X-Sample-Rate": str(told["sample_rate"]),
            "X-Audio-Duration-Seconds": f"{told['audio_seconds']:.3f}",
        }
        return Response(content, media_type=MEDIA_TYPES[job.format], headers=headers)

    @router.delete("/{id}", responses=errors(404, *REDIS))
    async def delete(request: Request, id: str) -> JobDeleted:
        return JobDeleted(id=id, status=await jobs.delete(request.state.subject, id))

    return router


def _status(job: Job) -> JobStatus:
    return JobStatus(
        id=job.id,
        status=job.status,
        created_at=job.time("created") or 0.0,
        started_at=job.time("started"),
        finished_at=job.time("finished"),
        expires_at=job.time("expires"),
        response_format=job.format,
        characters=int(job.fields["characters"]),
        metadata=job.json("metadata"),
        audio=job.json("audio"),
        error=job.json("error"),
    )
