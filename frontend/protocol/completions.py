"""`/v1/completions`: the request, the response and the chunks of a stream."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from frontend.protocol.common import GenerationRequest, PromptLogprobs, Usage


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    """A text, several texts, token ids, or several lists of token ids; a list must not mix them."""
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def num_samples(self) -> int:
        """How many outputs each prompt gets, of which `n` are answered."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def scored_tops(self) -> int | None:
        """How many alternatives to each token of the prompt are wanted for `prompt_logprobs` or `echo`."""
        wanted = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((count for count in wanted if count is not None), default=None)

    @property
    def num_prompts(self) -> int:
        """As far as the form of `prompt` tells; whether it is well made is checked later."""
        if isinstance(self.prompt, str) or all(isinstance(entry, int) for entry in self.prompt):
            return 1
        return len(self.prompt)


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A choice of a response, and of a chunk, where `finish_reason` is null until the end."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A response, and a chunk of a stream: OpenAI gives both the same object name."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
