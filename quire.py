"""Quire's public face. Each name is loaded when it is first used: a client needs neither torch nor a model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine_core.config.errors import ConfigError as ConfigError
    from frontend.client import EngineClient as EngineClient
    from frontend.client import EngineError as EngineError
    from frontend.grammars.structured_outputs import StructuredOutputs as StructuredOutputs
    from frontend.llm.llm import LLM as LLM
    from frontend.llm.sampling_params import BeamSearchParams as BeamSearchParams
    from frontend.llm.sampling_params import SamplingParams as SamplingParams

_HOMES = {
    "BeamSearchParams": "frontend.llm.sampling_params",
    "ConfigError": "engine_core.config.errors",
    "EngineClient": "frontend.client",
    "EngineError": "frontend.client",
    "LLM": "frontend.llm.llm",
    "SamplingParams": "frontend.llm.sampling_params",
    "StructuredOutputs": "frontend.grammars.structured_outputs",
}
__all__ = [
    "LLM",
    "BeamSearchParams",
    "ConfigError",
    "EngineClient",
    "EngineError",
    "SamplingParams",
    "StructuredOutputs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
