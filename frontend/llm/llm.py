"""`LLM`: a model in a Python program, prompts in and texts out, without a server.

    with LLM("path/to/model") as llm:
        for output in llm.generate(["Once upon a time", "def main():"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

The engine core and its workers run in processes of their own, as under `quire serve`; text is made here.
"""

import uuid
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from engine_core.config.errors import ConfigError
from engine_core.ipc.messages import MAX_SALT_CHARS
from engine_core.ipc.sampling_params import SamplingParams as EngineSamplingParams
from frontend.beams.generation import search_many
from frontend.beams.search import FinishedBeam
from frontend.chat_template import check_kwargs, load_chat_template
from frontend.cli.flags import GROUPS, make_args
from frontend.cli.resolve import resolve
from frontend.client import EngineError
from frontend.conversation import template_messages
from frontend.detokenizer import Detokenizer
from frontend.llm.jobs import Job, run_jobs
from frontend.llm.local_engine import LocalEngine
from frontend.llm.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    RequestOutput,
)
from frontend.llm.sampling_params import BeamSearchParams, SamplingParams
from frontend.protocol.chat import ChatMessage
from frontend.supervisor.progress import ProgressDisplay
from frontend.text.control_tokens import unmarked
from frontend.tokenizer import TextTokenizer

PromptInput = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}."""


class LLM:
    """Settings have the names of `quire serve`'s flags, with underscores. Close it, or use it as a context manager."""

    def __init__(self, model: str, *, show_progress: bool = False, **engine_args: Any) -> None:
        """Raises `ConfigError` for what cannot be served, `StartError` when the engine does not come up."""
        for name in GROUPS["Server"].split():
            if name in engine_args:
                raise ConfigError(f"LLM serves nobody else, so it has no setting {name!r}.")
        resolved = resolve(make_args({"model": model, **engine_args}))
        self._config = resolved.engine
        self._default_sampling = resolved.frontend.default_sampling
        folder = resolved.frontend.model_path
        self.tokenizer = TextTokenizer.from_folder(
            folder, sanitize_control_tokens=resolved.frontend.sanitize_control_tokens
        )
        self._chat_template = load_chat_template(
            folder, resolved.frontend.chat_template, self.tokenizer.special_tokens, self.tokenizer.control_tokens
        )
        progress = ProgressDisplay(show_progress)
        self._engine = LocalEngine(resolved, progress.update)
        # Also when it is never closed: at the latest when the interpreter exits.
        self._finalizer = weakref.finalize(self, self._engine.close)

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Answers all prompts together, in the order given. Raises `ValueError` before anything runs, `EngineError`.

        With a `cache_salt` prompts share the prefix cache with those of the same one only."""
        many = _as_list(prompts)
        return self._answer([self._prompt(prompt) for prompt in many], sampling_params, use_tqdm, cache_salt)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, in the messages of the OpenAI API. Raises as `generate`."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        kwargs = check_kwargs(chat_template_kwargs)
        prompts: list[tuple[str | None, list[int]]] = []
        for conversation in conversations:
            try:
                typed = msgspec.convert(conversation, list[ChatMessage])
            except msgspec.ValidationError as error:
                raise ValueError(f"messages: {error}.") from None
            text = self._chat_template.render(
                template_messages(typed),
                tools=None,
                add_generation_prompt=True,
                continue_final_message=False,
                kwargs=kwargs,
            )
            # The template writes the special tokens itself.
            prompts.append((unmarked(text), self.tokenizer.encode(text, add_special_tokens=False)))
        return self._answer(prompts, sampling_params, use_tqdm, cache_salt)

    def beam_search(
        self, prompts: PromptInput | Sequence[PromptInput], params: BeamSearchParams
    ) -> list[BeamSearchOutput]:
        """The best answers to each prompt by beam search, in the order of the prompts. Raises `ValueError` before
        anything runs, `EngineError`."""
        inputs = [self._prompt(prompt) for prompt in _as_list(prompts)]
        eos = () if params.ignore_eos else self._config.model.eos_token_ids
        beams = params.for_search(eos)
        for _, token_ids in inputs:
            self._check(token_ids, SamplingParams(max_tokens=params.max_tokens))
        if not self._finalizer.alive:
            raise ValueError("This LLM was closed.")
        window = max(1, self._config.scheduler.max_num_waiting // beams.width)
        try:
            searches = search_many(self._engine.client, [ids for _, ids in inputs], beams, window)
            found = self._engine.run(searches)
        except EngineError as error:
            raise self._engine.explain(error) from error
        return [
            BeamSearchOutput(text, ids, [self._beam(ids, one) for one in beams_of])
            for (text, ids), beams_of in zip(inputs, found, strict=True)
        ]

    def _beam(self, prompt: list[int], found: FinishedBeam) -> BeamSearchSequence:
        ids = list(found.beam.token_ids)
        detokenizer = Detokenizer(self.tokenizer, prompt, skip_special_tokens=True)
        text = "".join([detokenizer.step(token_id) for token_id in ids]) + detokenizer.flush()
        return BeamSearchSequence(text, ids, found.beam.logprob, found.score, found.reason)

    def reset_prefix_cache(self) -> int:
        """From now on prompts find nothing of what was computed before, as measurements may want it. Returns how many
        blocks they could have found. Raises `EngineError`."""
        try:
            num_blocks: int = self._engine.run(self._engine.client.utility("reset_prefix_cache"))
        except EngineError as error:
            raise self._engine.explain(error) from error
        return num_blocks

    def close(self) -> None:
        """Ends the engine. May be called twice."""
        self._finalizer()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prompt(self, prompt: PromptInput) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt, add_special_tokens=True)
        assert not isinstance(prompt, Mapping)
        return None, list(prompt)

    def _answer(
        self,
        prompts: list[tuple[str | None, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        cache_salt: str | None,
    ) -> list[RequestOutput]:
        if cache_salt is not None and len(cache_salt) > MAX_SALT_CHARS:
            raise ValueError(f"cache_salt must have at most {MAX_SALT_CHARS} characters, not {len(cache_salt)}.")
        params = self._params_for(sampling_params, len(prompts))
        jobs: list[Job] = []
        outputs = []
        for (text, token_ids), each in zip(prompts, params, strict=True):
            self._check(token_ids, each)
            output = RequestOutput(uuid.uuid4().hex, text, token_ids, [])
            output.outputs = [CompletionOutput(index) for index in range(each.n)]
            sampling = each.for_engine(self.tokenizer)
            jobs.extend(Job(output, index, each, sampling, self.tokenizer, cache_salt) for index in range(each.n))
            outputs.append(output)
        if not self._finalizer.alive:
            raise ValueError("This LLM was closed.")
        try:
            # The engine refuses more than may wait; what is beyond waits here.
            self._engine.run(run_jobs(self._engine, jobs, self._config.scheduler.max_num_waiting, use_tqdm))
        except EngineError as error:
            raise self._engine.explain(error) from error
        return outputs

    def _params_for(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> Sequence[SamplingParams]:
        if sampling_params is None:
            sampling_params = msgspec.convert(self._default_sampling, SamplingParams)
        if isinstance(sampling_params, EngineSamplingParams):
            return [sampling_params] * num_prompts
        if len(sampling_params) != num_prompts:
            raise ValueError(f"There are {num_prompts} prompts and {len(sampling_params)} sampling_params.")
        return sampling_params

    def _check(self, token_ids: list[int], params: SamplingParams) -> None:
        """What the engine would refuse is refused before any prompt runs."""
        limit, vocab_size = self._config.scheduler.max_model_len, self._config.model.vocab_size
        if not token_ids:
            raise ValueError("A prompt must have at least one token.")
        if len(token_ids) + (1 if params.max_tokens is None else params.max_tokens) > limit:
            wanted = f" and max_tokens is {params.max_tokens}" if params.max_tokens else ""
            raise ValueError(f"A prompt has {len(token_ids)} tokens{wanted}; the context holds {limit}.")
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < vocab_size:
                raise ValueError(f"A prompt has the token id {token_id}; they go from 0 to {vocab_size - 1}.")


def _as_list(prompts: PromptInput | Sequence[PromptInput]) -> Sequence[PromptInput]:
    """One prompt is a list of one; token ids are one prompt."""
    if isinstance(prompts, str | Mapping) or (prompts and all(isinstance(entry, int) for entry in prompts)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]
