"""The HTTP interface: one module for each group of routes."""

from fastapi import FastAPI

from maya1_tts import __version__
from maya1_tts.api.catalogue import catalogue_routes
from maya1_tts.api.document import document_routes
from maya1_tts.api.failures import handle_failures
from maya1_tts.api.health import health_routes
from maya1_tts.api.jobs import job_routes
from maya1_tts.api.observe import Observe
from maya1_tts.api.page import page_routes
from maya1_tts.api.service import Service
from maya1_tts.api.speech import speech_routes
from maya1_tts.api.websocket import websocket_routes

__all__ = ["Service", "create_app"]


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="maya1-tts", version=__version__, lifespan=service.lifespan, openapi_url=None)
    app.include_router(document_routes(app))
    app.include_router(page_routes(service))
    for routes in (speech_routes, websocket_routes, job_routes, catalogue_routes, health_routes):
        app.include_router(routes(service))
    handle_failures(app, service)
    app.add_middleware(Observe, service=service)
    return app
