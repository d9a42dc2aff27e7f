"""What goes wrong with a request, in the shape and the words of OpenAI's API. Knows no web framework."""

from typing import TYPE_CHECKING, Any

from engine_core.ipc import messages

if TYPE_CHECKING:  # whoever only needs `ApiError` does not load ZeroMQ
    from frontend.client import EngineError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"

_ENGINE_STATUS = {
    messages.ERROR_INVALID: 400,
    messages.ERROR_CONTEXT_LENGTH: 400,
    messages.ERROR_GRAMMAR: 400,
    messages.ERROR_MASK_TIMEOUT: 504,
    messages.ERROR_READER_TOO_SLOW: 408,
    messages.ERROR_OVERLOADED: 429,
    messages.ERROR_RESOURCES: 503,
    messages.ERROR_DEADLINE: 504,
    messages.ERROR_ENGINE_DEAD: 503,
    messages.ERROR_SHUTTING_DOWN: 503,
}

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(ValueError):
    """Answered with `status` and OpenAI's error object; `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.code}
        }

    def renamed(self, param: str) -> "ApiError":
        """The same about a field of another name, in its sentence too."""
        message = self.message.replace(self.param, param) if self.param else self.message
        return ApiError(self.status, message, param=param, code=self.code, headers=self.headers)

    def anthropic_body(self) -> dict[str, Any]:
        """The same in the shape of Anthropic's API."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    """The server cannot take the request now; another one, or this one later, may."""
    return ApiError(503, message, code=code, headers={"Retry-After": "1"})


def from_engine(error: "EngineError", grammar_param: str | None = None) -> ApiError:
    """How an engine's refusal looks to an HTTP client. `grammar_param`: the field that the grammar came from."""
    status = _ENGINE_STATUS.get(error.code, 503)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, round(error.retry_after or 1)))
    param = grammar_param if error.code == messages.ERROR_GRAMMAR else None
    return ApiError(status, error.message, param=param, code=error.code, headers=headers)


def _type_of(status: int) -> str:
    if status == 429:
        return RATE_LIMIT
    return INVALID_REQUEST if status < 500 else SERVER_ERROR
