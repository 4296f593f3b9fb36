"""Which models and voices there are."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from maya1_tts.api.access import allowed
from maya1_tts.api.document import errors
from maya1_tts.api.service import Service
from maya1_tts.errors import ApiError, shown


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "maya1-tts"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class VoiceInfo(BaseModel):
    """options: which fields of a request its engine follows, besides `speed`. tags: the emotion tags that it
    performs, as `laugh` for <laugh>.
    """

    id: str
    name: str
    language: str
    sample_rate: int
    engine: str
    options: list[str]
    tags: list[str]


class VoiceList(BaseModel):
    voices: list[VoiceInfo]


def catalogue_routes(service: Service) -> APIRouter:
    router = APIRouter(dependencies=[allowed(service)])

    @router.get("/v1/models", responses=errors(401, 503))
    async def models() -> ModelList:
        names = [service.engine.name, *service.settings.aliases]
        return ModelList(data=[Model(id=name) for name in names])

    @router.get("/v1/models/{model}", responses=errors(401, 404, 503))
    async def model(model: str) -> Model:
        names = [service.engine.name, *service.settings.aliases]
        if model not in names:
            raise ApiError(
                404, "model_not_found", f"'model' is {shown(model)}; allowed: {', '.join(names)}.", "model"
            )
        return Model(id=model)

    @router.get("/v1/audio/voices", responses=errors(401, 503))
    async def voices() -> VoiceList:
        engine = service.engine
        return VoiceList(
            voices=[
                VoiceInfo(
                    id=voice.id,
                    name=voice.name,
                    language=voice.language,
                    sample_rate=voice.sample_rate,
                    engine=engine.name,
                    options=sorted(engine.options),
                    tags=list(engine.tags),
                )
                for voice in engine.voices.values()
            ]
        )

    return router
