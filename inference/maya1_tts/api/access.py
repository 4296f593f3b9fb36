"""Who may use a route."""

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from maya1_tts.api.service import Service


def allowed(service: Service) -> Any:
    """A dependency that only lets valid tokens pass, and leaves whose it is in `request.state.subject`."""

    async def check(request: Request) -> None:
        request.state.subject = service.subject(request.headers.get("authorization"))

    return Depends(check)
