"""What watches the service: probes and metrics. No token; the gateway decides who reaches them."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from maya1_tts.api.service import Service


class State(BaseModel):
    status: Literal["alive", "ready", "stuck", "draining", "loading"]


def health_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", responses={503: {"model": State, "description": "Stuck."}})
    async def livez(response: Response) -> State:
        response.status_code = 503 if service.stuck else 200
        return State(status="stuck" if service.stuck else "alive")

    @router.get("/readyz", responses={503: {"model": State, "description": "Not ready."}})
    async def readyz(response: Response) -> State:
        response.status_code = 200 if service.ready else 503
        if service.ready:
            return State(status="ready")
        return State(status="stuck" if service.stuck else "draining" if service.draining else "loading")

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Metrics of Prometheus.",
                "content": {"text/plain": {}, "application/openmetrics-text": {}},
            }
        },
    )
    async def metrics(request: Request) -> Response:
        await asyncio.to_thread(service.gpus.refresh)
        generate, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(generate(service.metrics.registry), headers={"Content-Type": content_type})

    return router
