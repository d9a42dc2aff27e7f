"""The one exception of the client, with the codes that an engine core or the client itself gives it."""

ENGINE_DEAD = "engine_dead"
INVALID_REQUEST = "invalid_request"
UNREACHABLE = "engine_unreachable"
VERSION_MISMATCH = "version_mismatch"
UTILITY_FAILED = "utility_failed"
CLOSED = "client_closed"
SHUTTING_DOWN = "shutting_down"
READER_TOO_SLOW = "reader_too_slow"


class EngineError(Exception):
    """A request could not run or go on. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        """Seconds after which trying again makes sense, when the core can tell."""
