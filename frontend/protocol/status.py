"""Models, health, readiness, version, and what is said of an error."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class ModelCard(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "quire"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, kw_only=True):
    status: Literal["ready"] = "ready"
    progress: int
    """Moves with every step."""
    pending: int
    """Requests that are not finished."""
    draining: int | UnsetType = UNSET
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    free_blocks: int | UnsetType = UNSET
    total_blocks: int | UnsetType = UNSET


class Version(msgspec.Struct, kw_only=True):
    version: str
    protocol_version: int


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field that is wrong."""
    code: str | None


class ErrorBody(msgspec.Struct, kw_only=True):
    """What every status from 400 on has."""

    error: ErrorDetail
