"""Which models and voices there are."""

from typing import Any

from fastapi import APIRouter

from maya1_tts.api.access import allowed
from maya1_tts.api.service import Service
from maya1_tts.errors import ApiError, shown


def catalogue_routes(service: Service) -> APIRouter:
    router = APIRouter(dependencies=[allowed(service)])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [service.engine.name, *service.settings.aliases]
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        names = [service.engine.name, *service.settings.aliases]
        if model not in names:
            raise ApiError(
                404, "model_not_found", f"'model' is {shown(model)}; allowed: {', '.join(names)}.", "model"
            )
        return _model(model)

    @router.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        engine = service.engine
        fields = ("id", "name", "language", "sample_rate")
        return {
            "voices": [
                {field: getattr(voice, field) for field in fields} | {"engine": engine.name}
                for voice in engine.voices.values()
            ]
        }

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "maya1-tts"}
