"""Who may use a route."""

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from maya1_tts.api.service import Service
from maya1_tts.auth import Scope
from maya1_tts.certificates import HEADER


def allowed(service: Service, scope: Scope | None = None) -> Any:
    """A dependency that only lets valid tokens and certificates pass, with this scope if one is named.

    It leaves whose it is in `request.state.subject`, also where the scope is missing.
    """

    async def check(request: Request) -> None:
        headers = request.headers
        request.state.subject = service.subject(headers.get("authorization"), certificate=headers.get(HEADER))
        if scope:
            service.need(request.state.subject, scope)

    return Depends(check)
