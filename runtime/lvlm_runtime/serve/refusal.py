"""Why a request is not answered: an HTTP status and OpenAI's form of an error."""

from __future__ import annotations

from typing import Any

from lvlm_runtime.errors import LvlmError

# OpenAI's words for kinds of errors, by status.
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(LvlmError):
    """A request that is not answered.

    Args:
        message: One line: what failed, what was given, what to do.
        status: Of HTTP: 4xx where another request would be answered, 5xx where none would.
        code: A word for programs.
        param: The field of the request that is meant.
        retry_after_s: Whole seconds after which the same request may be answered.

    Example:
        >>> error = RefusedError("the queue is full; ask again later", 429, "queue_full")
        >>> error.body()["error"]["type"]
        'rate_limit_error'
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": " ".join(str(self).split()),
                "type": KINDS.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """``Retry-After``, where there is one."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
