"""What watches the service: probes and metrics. No token; the gateway decides who reaches them."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from maya1_tts.api.service import Service


def health_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        status = "ready" if service.ready else "draining" if service.draining else "loading"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
