"""Errors that a client is told of: an HTTP status, and a body in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ree.errors import Error

AGAIN_LATER = {"retry-after": "1"}
_TYPES = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}


class ApiError(Error):
    """A request is refused or has failed. param: the member of the request that is to blame; code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON value that the client gets."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def full() -> ApiError:
    """As many requests wait as may: 429."""
    return ApiError(
        429, "too many requests are waiting; try again later", code="rate_limit_exceeded", headers=AGAIN_LATER
    )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is not as it should be: 400."""
    return ApiError(400, message, param, code)
