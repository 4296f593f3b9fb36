"""From a request body to an Order, or to an error that says which field is wrong and what is allowed."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from maya1_tts.audio import FORMATS, Format, SampleRate
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Engine
from maya1_tts.errors import ApiError, shown
from maya1_tts.studio import Order

_ALLOWED = {
    "model": "a model id from /v1/models",
    "input": "text with words",
    "voice": "a voice id from /v1/audio/voices",
    "response_format": ", ".join(FORMATS),
    "speed": "a number from 0.25 to 4.0",
    "stream": "true or false",
    "stream_format": "'audio' or 'sse'",
    "sample_rate": ", ".join(map(str, get_args(SampleRate))),
    "timestamps": "'segment' (no engine here knows where words lie)",
    "metadata": "at most 16 pairs of strings, names up to 64 and values up to 512 characters",
    "type": "'start' first, then 'text', 'flush' or 'end'",
    "text": "a string",
    "instructions": "at most 500 characters, and nothing with an engine that cannot follow them",
    "description": "at most 500 characters",
    "seed": "a whole number from 0 to 4294967295",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0 and up to 1",
    "repetition_penalty": "a number from 1 to 2",
}
Name = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[str, Field(max_length=512)]
_NUMBERS = ("speed", "sample_rate", "seed", "temperature", "top_p", "repetition_penalty")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Options(BaseModel):
    """How to speak, whatever the text and however it comes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    voice: str | None = None
    response_format: Format = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)] = 1.0
    sample_rate: SampleRate | None = None
    instructions: Annotated[str, Field(max_length=500)] | None = None
    description: Annotated[str, Field(max_length=500)] | None = None
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=2, allow_inf_nan=False)] | None = None


class SpeechRequest(Options):
    """The body of POST /v1/audio/speech, as OpenAI's clients send it."""

    input: str
    stream: bool = False
    stream_format: Literal["audio", "sse"] | None = None
    timestamps: Literal["segment"] | None = None

    @property
    def streamed(self) -> bool:
        return self.stream or self.stream_format is not None


class FileRequest(Options):
    """The query of GET /v1/audio/speech: a whole file, which a cache may keep."""

    input: str


class JobRequest(Options):
    """The body of POST /v1/audio/jobs."""

    input: str
    timestamps: Literal["segment"] | None = None
    metadata: Annotated[dict[Name, Value], Field(max_length=16)] = Field(default_factory=dict)


Asked = TypeVar("Asked", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of which never more than `limit` bytes are held, whether or not its length was announced."""
    too_large = ApiError(
        413, "body_too_large", f"The request body is larger than {limit} bytes, which is the limit."
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(body: bytes, content_type: str, model: type[Asked]) -> Asked:
    """Raises ApiError unless the body is a JSON object with right fields of right types."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            f"The header 'Content-Type' is {shown(content_type)}; allowed: application/json.",
        )
    return understand(body, model)


def understand(body: bytes, model: type[Asked]) -> Asked:
    """Raises ApiError unless the body is a JSON object with right fields of right types."""
    try:
        data: Any = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, "invalid_json", f"The request body is not valid JSON: {shown(str(error), 120)}."
        ) from None
    if not isinstance(data, dict):
        raise ApiError(
            400, "invalid_json", "The request body is JSON but not an object; allowed: a JSON object."
        )
    return validate(data, model)


def validate(data: Mapping[str, Any], model: type[Asked]) -> Asked:
    """Raises ApiError unless these are right fields of right types."""
    for field in data:
        if field not in model.model_fields:
            name = shown(field)
            raise ApiError(
                400,
                "unknown_parameter",
                f"Unknown field {name}; allowed: {', '.join(model.model_fields)}.",
                name.strip("'"),
            )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return ApiError(400, "missing_parameter", f"'{field}' is missing; allowed: {_ALLOWED[field]}.", field)
    code = "invalid_characters" if first["type"] == "string_unicode" else "invalid_value"
    if field == "response_format":
        code = "unsupported_format"
    return ApiError(400, code, f"'{field}' is {shown(first['input'])}; allowed: {_ALLOWED[field]}.", field)


def from_query(items: Iterable[tuple[str, str]]) -> FileRequest:
    """Raises ApiError unless each field is there once at most, and right."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in fields:
            raise ApiError(400, "invalid_value", f"{shown(name)} is there twice; allowed: once.", name)
        fields[name] = _number(value) if name in _NUMBERS else value
    return validate(fields, FileRequest)


def _number(value: str) -> object:
    """What a body would have in its place; what is no number stays as it is, and is refused as such."""
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return value


def to_order(
    request: SpeechRequest | FileRequest | JobRequest,
    settings: Settings,
    engine: Engine,
    limit: int | None = None,
) -> Order:
    """Raises ApiError for whatever the configured engine cannot do. limit: characters, if not as usual."""
    check_text(request.input, limit or settings.max_input_chars)
    return replace(template(request, settings, engine), text=request.input)


def template(request: Options, settings: Settings, engine: Engine) -> Order:
    """An order that lacks its text. Raises ApiError for whatever the configured engine cannot do."""
    models = [engine.name, *settings.aliases]
    if request.model not in models:
        raise ApiError(
            404,
            "model_not_found",
            f"'model' is {shown(request.model)}; allowed: {', '.join(models)}.",
            "model",
        )
    voice = engine.voices.get(request.voice if request.voice is not None else settings.default_voice)
    if voice is None:
        raise ApiError(
            404,
            "voice_not_found",
            f"'voice' is {shown(request.voice)}; allowed: {', '.join(engine.voices)}.",
            "voice",
        )
    delivery = Delivery(voice.id, request.speed, **_options(request, engine))
    return Order("", voice, request.response_format, delivery, request.sample_rate)


def _options(request: Options, engine: Engine) -> dict[str, Any]:
    """What a request says of delivery besides voice and speed. OpenAI's `instructions` are a description."""
    fields = ("instructions", "description", "seed", "temperature", "top_p", "repetition_penalty")
    asked = {name: value for name in fields if (value := getattr(request, name)) not in (None, "")}
    for name, value in asked.items():
        if ("description" if name == "instructions" else name) not in engine.options:
            raise ApiError(
                400,
                "unsupported_parameter",
                f"'{name}' is {shown(value)}, but engine {engine.name} cannot follow it; "
                "allowed: leave it out.",
                name,
            )
    if "instructions" in asked:
        if "description" in asked:
            raise ApiError(
                400,
                "invalid_value",
                "'instructions' and 'description' mean the same; allowed: one of them.",
                "instructions",
            )
        asked["description"] = asked.pop("instructions")
    return asked


def check_text(text: str, limit: int) -> None:
    if len(text) > limit:
        raise ApiError(
            400, "input_too_long", f"'input' has {len(text)} characters; allowed: at most {limit}.", "input"
        )
    if not text.strip():
        raise ApiError(400, "empty_input", f"'input' is {shown(text)}; allowed: text with words.", "input")
    bad = _CONTROL.search(text)
    if bad is None:
        bad = re.search(r"[\ud800-\udfff]", text)
    if bad:
        raise ApiError(
            400,
            "invalid_characters",
            f"'input' contains {shown(bad[0])} at character {bad.start()}; allowed: text without control "
            "characters other than tab and line end.",
            "input",
        )
