"""What chat and text completions have in common: the request's sampling fields, usage, stream options."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from engine_core.ipc.sampling_params import passed_on_types
from frontend.api_keys import api_key_of
from frontend.protocol.structure import StructureFields

MAX_CHOICES = 128
MAX_TRACE_CONTEXT_CHARS = 512


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class NamedSamplingFields(StructureFields, kw_only=True):
    """Sampling parameters that code reads by their names."""

    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None


if TYPE_CHECKING:
    SamplingFields = NamedSamplingFields
else:  # all that the schema passes on
    SamplingFields = msgspec.defstruct(
        "SamplingFields",
        [(name, kind | None, None) for name, kind in passed_on_types().items()],
        bases=(NamedSamplingFields,),
        kw_only=True,
    )


class GenerationRequest(SamplingFields, kw_only=True):
    """Fields that mean the same for every way to ask for text. None: not given, the server's default holds."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    bad_words: list[str] | None = None
    thinking_token_budget: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    user: str | None = None

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


def trace_context_of(headers: Mapping[str, str]) -> str | None:
    """The request's W3C `traceparent`; none where it is longer than the engine takes, which no real one is."""
    value = headers.get("traceparent")
    return value if value is None or len(value) <= MAX_TRACE_CONTEXT_CHARS else None


def share_key_of(headers: Mapping[str, str]) -> str | None:
    """Whose share a request is part of: a digest of its API key, for the key itself has no business in the engine."""
    key = api_key_of(headers)
    if key is None:
        return None
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()


class PromptLogprob(msgspec.Struct, kw_only=True):
    """How likely a token was in its place in the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""By token id; null for a prompt's first token."""


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


def usage(
    num_prompt_tokens: int,
    num_output_tokens: int,
    num_cached_tokens: int | None = None,
    num_reasoning_tokens: int | None = None,
) -> Usage:
    """`num_cached_tokens` None: not known yet; `num_reasoning_tokens` None: nobody looked for reasoning."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=(
            UNSET if num_cached_tokens is None else PromptTokensDetails(cached_tokens=num_cached_tokens)
        ),
        completion_tokens_details=(
            UNSET if num_reasoning_tokens is None else CompletionTokensDetails(reasoning_tokens=num_reasoning_tokens)
        ),
    )
