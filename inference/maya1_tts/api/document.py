"""/openapi.json. Bodies and audio are handled by hand here, so FastAPI is told what they are."""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from maya1_tts.audio import MEDIA_TYPES
from maya1_tts.request import Options

_CODES = {
    400: "The request is wrong; `code` and `param` say how.",
    401: "There is no valid token.",
    403: "The token lacks the scope (`insufficient_scope`).",
    404: "There is no such thing, or it is not yours.",
    408: "The client took too long.",
    409: "Not in this state, or the idempotency key belongs to another body.",
    410: "Redis had to forget the audio.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests, or too many jobs.",
    500: "The service failed; it has logged why.",
    503: "Overloaded, loading, about to stop, or without Redis; `Retry-After` says when to come again.",
    507: "Redis has no room.",
}
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "properties": {
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "description": "speech.audio.delta, speech.audio.segment, speech.audio.done or error.",
                }
            },
            "required": ["data"],
        }
    }
}
DEADLINE: dict[str, Any] = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "description": "Milliseconds within which the engine must be free to begin.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999},
}


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "`If-None-Match` names what it would be."}
}


class Failure(BaseModel):
    """`code` is stable and meant for programs; `message` is meant for people."""

    message: str
    type: str
    param: str | None
    code: str


class Refusal(BaseModel):
    """OpenAI's shape of an error."""

    error: Failure


Answers = dict[int | str, dict[str, Any]]


def audio(description: str, events: dict[str, Any] | None = None, **more: Any) -> Answers:
    """An answer that is audio, or events. more: what else FastAPI should know of it."""
    content: dict[str, Any] = {
        media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()
    }
    return {200: {"description": description, "content": content | (events or {})} | more}


def errors(*statuses: int) -> Answers:
    return {status: {"model": Refusal, "description": _CODES[status]} for status in statuses}


def body(model: type[Options], longest: int) -> dict[str, Any]:
    """An operation's JSON body. longest: characters of `input`."""
    content = {"application/json": {"schema": _fields(model, longest)}}
    return {"requestBody": {"required": True, "content": content}}


def query(model: type[Options], longest: int) -> dict[str, Any]:
    """An operation's query, of the same fields as a body would have. longest: characters of `input`."""
    schema = _fields(model, longest)
    parameters = [
        {"name": name, "in": "query", "required": name in schema["required"], "schema": _given(field)}
        for name, field in schema["properties"].items()
    ]
    return {"parameters": [*parameters, DEADLINE]}


def _fields(model: type[Options], longest: int) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema["properties"]["input"] |= {"minLength": 1, "maxLength": longest}
    return schema


def _given(field: dict[str, Any]) -> dict[str, Any]:
    """What a field may be where it is there: a query knows no null."""
    return next((kind for kind in field.get("anyOf", []) if kind["type"] != "null"), field)


def document_routes(app: FastAPI) -> APIRouter:
    router = APIRouter()

    @router.get("/openapi.json", include_in_schema=False)
    async def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return router


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description="Text in, streamed audio out. There is also a WebSocket, /v1/audio/speech/ws.",
        routes=app.routes,
    )
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                operation["security"] = [{"bearer": []}]
            operation["responses"].pop("422", None)  # FastAPI's own, which `failures` turns into 400
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document
