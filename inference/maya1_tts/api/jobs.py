"""Batch jobs: submit now, fetch later."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maya1_tts.api.access import allowed
from maya1_tts.api.service import Service
from maya1_tts.audio import MEDIA_TYPES, Format
from maya1_tts.errors import ApiError, shown
from maya1_tts.jobs import Job, Status
from maya1_tts.request import JobRequest, parse, read_body, to_order

MAX_KEY_LENGTH = 255


class Segment(BaseModel):
    """`text` as it was spoken; `start` and `end` in seconds, the pause behind it included."""

    text: str
    start: float
    end: float


class JobAudio(BaseModel):
    engine: str
    voice: str
    sample_rate: int
    audio_seconds: float
    rtf: float
    cache: str
    bytes: int
    segments: list[Segment] | None


class JobError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


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
    error: JobError | None


class JobPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobStatus]
    has_more: bool


class JobDeleted(BaseModel):
    id: str
    object: Literal["audio.job"] = "audio.job"
    status: Literal["cancelled", "deleted"]


def job_routes(service: Service) -> APIRouter:
    router = APIRouter(dependencies=[allowed(service, "jobs")])
    jobs, settings = service.jobs, service.settings

    @router.post("/v1/audio/jobs", status_code=202)
    async def submit(request: Request) -> JSONResponse:
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise ApiError(
                400,
                "invalid_idempotency_key",
                f"The header 'Idempotency-Key' is {shown(key)}; "
                f"allowed: 1 to {MAX_KEY_LENGTH} ASCII characters.",
            )
        body = await read_body(request, settings.max_body_bytes)
        asked = parse(body, request.headers.get("content-type", ""), JobRequest)
        to_order(asked, settings, service.engine, settings.job_max_input_chars)  # what is wrong is said now
        job = await jobs.submit(request.state.subject, asked, key)
        request.state.log |= {"job": job.id, "chars": len(asked.input)}
        return JSONResponse(_status(job), 202, {"Location": f"/v1/audio/jobs/{job.id}"})

    @router.get("/v1/audio/jobs")
    async def page(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> JSONResponse:
        found, more = await jobs.page(request.state.subject, limit, after)
        return JSONResponse({"object": "list", "data": [_status(job) for job in found], "has_more": more})

    @router.get("/v1/audio/jobs/{id}")
    async def status(request: Request, id: str) -> JSONResponse:
        return JSONResponse(_status(await jobs.get(request.state.subject, id)))

    @router.get("/v1/audio/jobs/{id}/result")
    async def result(request: Request, id: str) -> Response:
        job = await jobs.get(request.state.subject, id)
        body = await jobs.audio(job)
        told = job.json("audio")
        headers = {
            "X-Engine": told["engine"],
            "X-Voice": told["voice"],
            "X-Sample-Rate": str(told["sample_rate"]),
            "X-Audio-Duration-Seconds": f"{told['audio_seconds']:.3f}",
        }
        return Response(body, media_type=MEDIA_TYPES[job.format], headers=headers)

    @router.delete("/v1/audio/jobs/{id}")
    async def delete(request: Request, id: str) -> JSONResponse:
        outcome = await jobs.delete(request.state.subject, id)
        return JSONResponse({"id": id, "object": "audio.job", "status": outcome})

    return router


def _status(job: Job) -> dict[str, Any]:
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
    ).model_dump()
