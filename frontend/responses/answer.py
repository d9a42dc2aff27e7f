"""The response to one request: its object, from the request to the end."""

import time

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningSettings,
    Response,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
    TextSettings,
)
from frontend.responses.output import OutputWriter


def new_response(asked: ResponsesRequest, response_id: str, model: str) -> Response:
    """Before there is any output."""
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="in_progress",
        background=bool(asked.background),
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        model=model,
        output=[],
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        previous_response_id=asked.previous_response_id,
        reasoning=asked.reasoning or ReasoningSettings(),
        store=asked.store is not False,
        temperature=asked.temperature,
        text=asked.text or TextSettings(),
        tool_choice="auto" if asked.tool_choice is None else asked.tool_choice,
        tools=asked.tools or [],
        top_logprobs=asked.top_logprobs or 0,
        top_p=asked.top_p,
        user=asked.user,
    )


async def write_response(response: Response, writer: OutputWriter, generation: Generation) -> None:
    """All of a generation, for whoever waits for the whole."""
    async for _, piece in generation:
        for _ in writer.push(piece):  # the events are nobody's business here
            pass
    for _ in writer.end():
        pass
    finish_response(response, writer, generation)


def finish_response(response: Response, writer: OutputWriter, generation: Generation) -> None:
    """Its end, with all that was written."""
    response.status = "incomplete" if writer.is_cut else "completed"
    if writer.is_cut:
        response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
    response.output = writer.items
    figures = generation.usage()
    cached, details = figures.prompt_tokens_details, figures.completion_tokens_details
    response.usage = ResponseUsage(
        input_tokens=figures.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached.cached_tokens if cached else 0),
        output_tokens=figures.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=details.reasoning_tokens if details else 0),
        total_tokens=figures.total_tokens,
    )


def fail_response(response: Response, error: ApiError) -> None:
    response.status = "failed"
    response.error = ResponseFailure(code=error.code or "server_error", message=error.message)
