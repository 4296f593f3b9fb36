"""The page at /: type, and hear it while it is being made."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from maya1_tts.api.service import Service


def page_routes(service: Service) -> APIRouter:
    router = APIRouter()
    if not service.settings.page:
        return router
    page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    headers = {"Content-Security-Policy": _policy(page), "X-Content-Type-Options": "nosniff"}
    page = page.replace('data-auth="jwt"', f'data-auth="{service.settings.auth}"', 1)

    @router.get("/", include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return router


def _policy(page: str) -> str:
    """Nothing but the page's own script and style, which their hashes name, and requests to this server.

    Source: https://www.w3.org/TR/CSP3/
    """
    hashes = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
            for content in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        )
        for kind in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
