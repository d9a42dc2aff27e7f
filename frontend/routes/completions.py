"""POST /v1/completions."""

import time
import uuid

from sanic import Request
from sanic.response import HTTPResponse

from frontend.beams.generation import BeamGeneration
from frontend.beams.input import beam_params
from frontend.best_of import best_outputs
from frontend.completion_answer import CompletionAnswer
from frontend.errors import bad_request
from frontend.generation import Generation, Order
from frontend.input_processor import Prompt
from frontend.json_response import json_response
from frontend.output_processor import OutputPiece
from frontend.protocol.common import MAX_CHOICES, trace_context_of, usage
from frontend.protocol.completions import CompletionRequest
from frontend.protocol.decode import decode_body, warning_header
from frontend.state import FrontendState
from frontend.streaming import stream_answer

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint, and only this one."""


async def create(request: Request, state: FrontendState) -> HTTPResponse | None:
    completion, unknown = decode_body(request.body, CompletionRequest, strict=state.config.strict_requests)
    headers = warning_header(unknown)
    model = state.model_name(completion.model)
    async with state.generating():
        processor = state.input_processor
        _check(completion)
        processor.check_choices(completion, completion.num_prompts, completion.num_samples)
        prompts = await processor.completion_prompts(completion)
        response_id = f"cmpl-{completion.request_id or uuid.uuid4().hex}"
        answer = CompletionAnswer(
            response_id,
            int(time.time()),
            model,
            state.tokenizer,
            prompts,
            completion.num_choices,
            echo=bool(completion.echo),
            logprobs=completion.logprobs,
            prompt_logprobs=completion.prompt_logprobs,
            return_token_ids=bool(completion.return_token_ids),
        )
        if completion.max_tokens == 0 and completion.scored_tops is None:
            return _echo_only(completion, prompts, answer, headers)
        order = await _order(completion, prompts, response_id, state, request)
        if order.beams:
            beams = BeamGeneration(order, completion.num_choices, state.tokenizer, state.client)
            return json_response(answer.whole(await beams.collect(), beams.usage()), headers=headers)
        generation = Generation(order, state.tokenizer, state.client)
        try:
            if completion.stream:
                await stream_answer(request, generation, answer, completion.stream_options, state.keep_alive, headers)
                return None
            pieces = await generation.collect()
            if completion.num_samples > completion.num_choices:
                pieces = best_outputs(pieces, completion.num_samples, completion.num_choices)
            return json_response(answer.whole(pieces, generation.usage()), headers=headers)
        finally:
            generation.close()


def _check(completion: CompletionRequest) -> None:
    """Raises a 400 for what is wrong here or not supported yet."""
    if completion.suffix:
        raise bad_request("suffix is not supported: these models do not fill in.", "suffix")
    if completion.num_samples < completion.num_choices:
        raise bad_request(f"best_of must be at least n, which is {completion.num_choices}.", "best_of")
    if completion.best_of is not None and completion.best_of > MAX_CHOICES:
        raise bad_request(f"best_of must be at most {MAX_CHOICES}, not {completion.best_of}.", "best_of")
    if completion.num_samples > completion.num_choices and completion.stream:
        raise bad_request("best_of must equal n with stream: true: the best is known at the end.", "best_of")
    if completion.use_beam_search and completion.echo and completion.logprobs is not None:
        raise bad_request("use_beam_search must not come with echo and logprobs.", "use_beam_search")
    if completion.use_beam_search and completion.max_tokens == 0:
        raise bad_request("max_tokens must be at least 1 with use_beam_search.", "max_tokens")
    wants_prompt = completion.echo or completion.prompt_logprobs is not None
    if completion.max_tokens == 0 and (not wants_prompt or completion.stream):
        raise bad_request(
            "max_tokens must be at least 1; 0 is for echo or prompt_logprobs, without a stream.", "max_tokens"
        )


def _echo_only(
    completion: CompletionRequest, prompts: list[Prompt], answer: CompletionAnswer, headers: dict[str, str]
) -> HTTPResponse:
    """`echo` with `max_tokens: 0` gives the prompt back; there is nothing to generate."""
    pieces = [OutputPiece(finish_reason="length") for _ in range(len(prompts) * completion.num_choices)]
    figures = usage(sum(len(prompt.token_ids) for prompt in prompts), 0)
    return json_response(answer.whole(pieces, figures), headers=headers)


async def _order(
    completion: CompletionRequest,
    prompts: list[Prompt],
    response_id: str,
    state: FrontendState,
    request: Request,
) -> Order:
    processor = state.input_processor
    # Outputs are compared by their log-probabilities, wanted or not.
    is_ranked = completion.num_samples > completion.num_choices and not completion.use_beam_search
    logprobs = 0 if is_ranked and completion.logprobs is None else completion.logprobs
    grammar = await processor.completion_grammar(completion)
    samplings = [
        processor.sampling(
            completion,
            prompt,
            max_tokens=completion.max_tokens,
            logprobs=logprobs,
            prompt_logprobs=completion.scored_tops,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            grammar=grammar,
        )
        for prompt in prompts
    ]
    beams = [
        beam_params(
            completion,
            completion.num_samples,
            sampling["max_tokens"],
            processor.limits,
            has_grammar=grammar is not None,
        )
        for sampling in (samplings if completion.use_beam_search else ())
    ]
    return Order(
        response_id=response_id,
        grammar_param=None if grammar is None else grammar.param,
        prompts=prompts,
        samplings=samplings,
        num_samples=completion.num_samples,
        options=processor.output_options(completion),
        priority=completion.priority or 0,
        share_key=state.shares.key_of(request),
        cache_salt=state.shares.salt_of(request, completion.cache_salt),
        trace_context=trace_context_of(request.headers),
        beams=beams,
    )
