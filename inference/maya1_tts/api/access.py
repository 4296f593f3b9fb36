"""Who may use a route."""

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from maya1_tts.api.service import Service
from maya1_tts.auth import Scope


def allowed(service: Service, scope: Scope | None = None) -> Any:
    """A dependency that only lets valid tokens pass, with this scope if one is named.

    It leaves whose token it is in `request.state.subject`, also where the scope is missing.
    """

    async def check(request: Request) -> None:
        request.state.subject = service.subject(request.headers.get("authorization"))
        if scope:
            service.need(request.state.subject, scope)

    return Depends(check)
