"""Typed requests to what the engine takes: token ids and sampling parameters, all limits checked.

Knows neither HTTP nor the engine's socket. Whatever it refuses is a 400 that names the field.
"""

import secrets
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from engine_core.ipc.messages import ERROR_CONTEXT_LENGTH, MAX_SALT_CHARS
from engine_core.ipc.sampling_params import SamplingParams, passed_on_types
from frontend.bad_words import bad_word_sequences
from frontend.errors import ApiError, bad_request
from frontend.grammars.request_grammar import RequestGrammar
from frontend.grammars.tool_calls import InputGrammar
from frontend.output_processor import OutputOptions
from frontend.preparation.jobs import ChatJob, EncodeJob, GrammarJob, PreparedChat
from frontend.preparation.pool import PreparationPool
from frontend.protocol.chat import ChatCompletionRequest
from frontend.protocol.common import MAX_CHOICES, GenerationRequest
from frontend.protocol.completions import CompletionRequest
from frontend.protocol.decode import from_validation
from frontend.protocol.structure import StructureFields, structure_of
from frontend.protocol.unsupported import refuse_unsupported
from frontend.stop_strings import check_stop_strings
from frontend.system_messages import takes_system_anywhere
from frontend.thinking_budget import thinking_fields
from frontend.tools import callable_tools

MAX_TOTAL_CHOICES = 512
"""Of one request; each is a request to the engine. Half of what may wait there by default (`--max-num-waiting`): one
client's batch leaves room for the others."""

_PASSED_ON = tuple(passed_on_types())


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and its engine allow."""

    max_model_len: int
    max_logprobs: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: "array[int]"
    text: str | None
    """As the client sent it, where it sent text. Of a chat, as rendered, and whole also where the ids are truncated:
    its end tells whether the model goes on with reasoning."""


class InputProcessor:
    """One model's way from a request to the engine's terms."""

    def __init__(
        self,
        preparation: PreparationPool,
        limits: Limits,
        default_sampling: Mapping[str, float | int],
    ) -> None:
        self.limits = limits
        self._preparation = preparation
        self._preparer = preparation.preparer
        self._tokenizer = self._preparer.tokenizer
        self._default_sampling = default_sampling
        self.takes_system_anywhere = takes_system_anywhere(self._preparer.chat_template)

    async def chat_prompt(self, request: ChatCompletionRequest) -> Prompt:
        """The conversation alone, whatever is said of the answer."""
        return self._chat_prompt(request, await self._preparation.run(ChatJob(request, wants_grammar=False)))

    async def prepare_chat(
        self, request: ChatCompletionRequest, input_grammars: dict[str, InputGrammar]
    ) -> tuple[Prompt, RequestGrammar | None]:
        """The conversation, and what the answer has to be, if the request says so. `input_grammars`: of its custom
        tools, by their names."""
        job = ChatJob(request, wants_grammar=True, input_grammars=input_grammars)
        prepared = await self._preparation.run(job)
        return self._chat_prompt(request, prepared), prepared.grammar

    def _chat_prompt(self, request: ChatCompletionRequest, prepared: PreparedChat) -> Prompt:
        prompt = self._text_prompt(prepared.text, prepared.token_ids, "messages")
        return replace(self._truncate(prompt, request, request.max_answer_tokens), text=prepared.text)

    async def completion_prompts(self, request: CompletionRequest) -> list[Prompt]:
        """Every form of `prompt` as a list of prompts."""
        prompts = await self._whole_prompts(request)
        return [self._truncate(prompt, request, request.max_tokens) for prompt in prompts]

    async def _whole_prompts(self, request: CompletionRequest) -> list[Prompt]:
        add_special_tokens = request.add_special_tokens is not False
        prompt = request.prompt
        if isinstance(prompt, str):
            (token_ids,) = await self._preparation.run(EncodeJob([prompt], add_special_tokens))
            return [self._text_prompt(prompt, token_ids, "prompt")]
        if not prompt:
            raise bad_request("prompt must not be an empty list.", "prompt")
        if all(isinstance(entry, int) for entry in prompt):
            return [self._from_ids(prompt, "prompt")]  # type: ignore[arg-type]
        texts = [entry for entry in prompt if isinstance(entry, str)]
        lists = [entry for entry in prompt if isinstance(entry, list)]
        if max(len(texts), len(lists)) < len(prompt):
            index = next(index for index, entry in enumerate(prompt) if type(entry) is not type(prompt[0]))
            raise bad_request("prompt must not mix texts and token ids.", f"prompt[{index}]")
        if lists:
            return [self._from_ids(entry, f"prompt[{index}]") for index, entry in enumerate(lists)]
        all_token_ids = await self._preparation.run(EncodeJob(texts, add_special_tokens))
        return [
            self._text_prompt(text, token_ids, f"prompt[{index}]")
            for index, (text, token_ids) in enumerate(zip(texts, all_token_ids, strict=True))
        ]

    def _truncate(self, prompt: Prompt, request: GenerationRequest, max_tokens: int | None) -> Prompt:
        """The last `truncate_prompt_tokens` tokens; with -1 as many as leave room for the answer."""
        count = request.truncate_prompt_tokens
        if count is None:
            return prompt
        if count != -1 and not 1 <= count <= self.limits.max_model_len:
            raise bad_request(
                f"truncate_prompt_tokens must be -1 or from 1 to {self.limits.max_model_len}, not {count}.",
                "truncate_prompt_tokens",
            )
        if count == -1:
            count = max(1, self.limits.max_model_len - (1 if max_tokens is None else max_tokens))
        return prompt if len(prompt.token_ids) <= count else Prompt(prompt.token_ids[-count:], None)

    def sampling(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        default_max_tokens: int | None = None,
        grammar: RequestGrammar | None = None,
    ) -> dict[str, Any]:
        """The sampling parameters of one prompt, checked, as the wire has them."""
        values: dict[str, Any] = dict(self._default_sampling)
        # Without a word of the client the endpoint's or the model's default holds, as far as the context goes.
        models_max_tokens = values.pop("max_tokens", None)
        for name in _PASSED_ON:
            value = getattr(request, name)
            if value is not None:
                values[name] = value
        if values.get("top_k") == -1:
            values["top_k"] = 0
        room = self._check_length(len(prompt.token_ids), max_tokens)
        values["max_tokens"] = (
            max_tokens if max_tokens is not None else min(room, int(default_max_tokens or models_max_tokens or room))
        )
        own_name = "top_logprobs" if isinstance(request, ChatCompletionRequest) else "logprobs"
        for field, name, count in (
            ("logprobs", own_name, logprobs),
            ("prompt_logprobs", "prompt_logprobs", prompt_logprobs),
        ):
            if count is not None:
                if not 0 <= count <= self.limits.max_logprobs:
                    raise bad_request(f"{name} must be from 0 to {self.limits.max_logprobs}, not {count}.", name)
                values[field] = count
        if grammar is not None:
            values["grammar"] = grammar.text
        values.setdefault("seed", secrets.randbits(63))
        if request.bad_words:
            try:
                values["bad_words_token_ids"] = bad_word_sequences(request.bad_words, self._tokenizer)
            except ValueError as error:
                raise bad_request(str(error), "bad_words") from error
        if request.thinking_token_budget is not None:
            is_bound = grammar is not None
            values |= self._thinking_budget(request, prompt, request.thinking_token_budget, is_bound)
        try:
            msgspec.convert(values, SamplingParams)
        except msgspec.ValidationError as error:
            raise from_validation(error) from error
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
            self._check_token_ids(values.get(name, ()), name)
        return values

    @property
    def knows_reasoning(self) -> bool:
        """Whether reasoning is told apart from the answer."""
        return self._preparer.parsers.reasoning_format is not None

    def _thinking_budget(
        self, request: GenerationRequest, prompt: Prompt, budget: int, is_bound: bool
    ) -> dict[str, Any]:
        if not isinstance(request, ChatCompletionRequest) or not self.knows_reasoning:
            raise bad_request(
                "thinking_token_budget needs a chat with a model whose reasoning is known (--reasoning-parser).",
                "thinking_token_budget",
            )
        parsers = self._preparer.parsers_for(request, is_bound=is_bound)
        return thinking_fields(budget, parsers, prompt.text or "", self._tokenizer)

    def output_options(self, request: GenerationRequest) -> OutputOptions:
        stop_strings = request.stop_strings
        try:
            check_stop_strings(stop_strings)
        except ValueError as error:
            raise bad_request(str(error), "stop") from error
        return OutputOptions(
            stop_strings=stop_strings,
            include_stop=bool(request.include_stop_str_in_output),
            min_tokens=request.min_tokens or 0,
            stop_token_ids=frozenset(request.stop_token_ids or ()),
            skip_special_tokens=request.skip_special_tokens is not False,
        )

    def chat_output_options(self, request: ChatCompletionRequest, prompt: Prompt, *, is_bound: bool) -> OutputOptions:
        """Those of `output_options`, and how the model's text is told apart. `is_bound`: whether it has a grammar."""
        tools = callable_tools(request.tools, request.tool_choice)
        return replace(
            self.output_options(request),
            parsers=self._preparer.parsers_for(request, is_bound=is_bound).for_request(
                prompt.text or "",
                tools.schemas,
                is_restricted=tools.is_restricted,
                is_call_forced=tools.is_forced,
            ),
            parallel_tool_calls=request.parallel_tool_calls is not False,
            finishes_with_calls=not tools.is_named,
            logprobs_of_content=bool(request.logprobs),
        )

    async def completion_grammar(self, request: GenerationRequest) -> RequestGrammar | None:
        """What the answer has to be that has neither reasoning nor tools. Raises a 400."""
        if structure_of(request) is None:
            return None
        fields = {name: getattr(request, name) for name in StructureFields.__struct_fields__}
        return await self._preparation.run(GrammarJob(StructureFields(**fields)))

    def check_choices(self, request: GenerationRequest, num_prompts: int, num_samples: int) -> None:
        """Raises a 400 for an `n` out of range, `stream_options` without a stream, and what is not supported.
        `num_samples`: outputs of each prompt."""
        refuse_unsupported(request)
        if not 1 <= request.num_choices <= MAX_CHOICES:
            raise bad_request(f"n must be from 1 to {MAX_CHOICES}, not {request.n}.", "n")
        if num_samples * num_prompts > MAX_TOTAL_CHOICES:
            name = "n" if num_samples == request.num_choices else "best_of"
            raise bad_request(
                f"{name} times the number of prompts must be at most {MAX_TOTAL_CHOICES}, "
                f"not {num_samples * num_prompts}.",
                name if num_samples > 1 else "prompt",
            )
        if request.prompt_logprobs is not None and request.stream:
            raise bad_request("prompt_logprobs must not come with stream: true.", "prompt_logprobs")
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options must come with stream: true.", "stream_options")
        if request.priority is not None and not -(2**31) <= request.priority < 2**31:
            raise bad_request("priority must be a signed 32-bit number.", "priority")
        for name, limit in (("cache_salt", MAX_SALT_CHARS), ("request_id", 128)):
            value = getattr(request, name)
            if value is not None and not 1 <= len(value) <= limit:
                raise bad_request(f"{name} must have 1 to {limit} characters.", name)

    def _text_prompt(self, text: str, token_ids: bytes, param: str) -> Prompt:
        """`token_ids`: int32."""
        if not token_ids:
            raise bad_request(f"{param} must not be empty.", param)
        column = array("i")
        column.frombytes(token_ids)
        if self._tokenizer.num_tokens > self.limits.vocab_size:
            self._check_token_ids((max(column),), param)
        return Prompt(column, text)

    def _from_ids(self, token_ids: Sequence[int], param: str) -> Prompt:
        if not token_ids:
            raise bad_request(f"{param} must not be empty.", param)
        self._check_token_ids((min(token_ids), max(token_ids)), param)
        return Prompt(array("i", token_ids), None)

    def _check_token_ids(self, token_ids: Sequence[int] | Mapping[int, float], param: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.limits.vocab_size:
                raise bad_request(
                    f"{param} must have token ids from 0 to {self.limits.vocab_size - 1}, not {token_id}.", param
                )

    def _check_length(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens may follow the prompt. Raises a 400 with both lengths when it is fewer than wanted."""
        limit = self.limits.max_model_len
        room = limit - num_prompt_tokens
        if room < (1 if max_tokens is None else max_tokens):
            wanted = f" and max_tokens asks for {max_tokens} more" if max_tokens and room >= 1 else ""
            raise ApiError(
                400,
                f"This model's context holds {limit} tokens, but the prompt has {num_prompt_tokens}{wanted}.",
                param="max_tokens" if wanted else "prompt",
                code=ERROR_CONTEXT_LENGTH,
            )
        return room
