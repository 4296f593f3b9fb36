"""What watches the service: probes and metrics. No token; the gateway decides who reaches them."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from maya1_tts.api.service import Service


def health_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "stuck" if service.stuck else "alive"}, 503 if service.stuck else 200)

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        states = {"ready": service.ready, "stuck": service.stuck, "draining": service.draining}
        status = next((state for state, holds in states.items() if holds), "loading")
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
