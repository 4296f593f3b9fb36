"""The two kinds of failure that people see: a refused request and a refused start."""

from collections.abc import Mapping


class ApiError(Exception):
    """A request that is answered with an OpenAI-shaped error.

    `code` is stable and meant for programs, `message` is meant for people: it names the field, the value and
    what is allowed. `param` is the request field at fault, if there is one.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        kind = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ConfigError(Exception):
    """The service cannot start as configured. The message is one sentence for the operator."""


def shown(value: object, limit: int = 60) -> str:
    """The value as it may appear in a message: quoted, on one line, not longer than `limit`."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
