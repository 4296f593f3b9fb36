"""Whatever goes wrong is answered in OpenAI's shape."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maya1_tts.api.service import Service
from maya1_tts.errors import ApiError, shown


class ClientGone(Exception):
    """Nobody is left to answer."""


def _methods(app: FastAPI, path: str) -> set[str]:
    routes = iter_route_contexts(app.routes)
    return {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}


def handle_failures(app: FastAPI, service: Service) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        request.state.log |= {"code": error.code}
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        message = f"{name!r} is {shown(first['input'])}; allowed: {first['msg']}."
        return JSONResponse(ApiError(400, "invalid_value", message, name).body(), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = shown(request.url.path)
        told = {
            404: ApiError(404, "not_found", f"There is no route {path}."),
            405: ApiError(405, "method_not_allowed", f"{request.method} is not allowed on {path}."),
        }.get(error.status_code) or ApiError(error.status_code, "http_error", str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette knows only the first route of a path
            headers["Allow"] = ", ".join(sorted(_methods(app, request.url.path)))
        return JSONResponse(told.body(), told.status, headers)

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # for the log and the metrics; nobody reads it

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        told = ApiError(500, "internal_error", "The service failed; it has logged why.")
        return JSONResponse(told.body(), 500)
