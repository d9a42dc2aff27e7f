"""What known client packages do with a server, one function a check: it returns when all is well, and raises otherwise.

Not collected by pytest: the packages live in an environment of their own, see `scripts/client_check.sh`.
"""

import json
from collections.abc import Callable
from typing import Any

Check = Callable[[str, str], None]
"""Called with the server's URL and the model's name."""

QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PLAIN: Any = [{"role": "user", "content": "What does len do?"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "get_weather", "description": "Get the current weather for a city.", "parameters": SCHEMA}
TOOL: Any = {"type": "function", "function": FUNCTION}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
GREEDY: Any = {"temperature": 0, "max_tokens": 120}
PARIS = {"city": "Paris"}


def _raised(kind: type[Any], call: Callable[..., Any], **fields: Any) -> Any:
    """The error that a call is refused with."""
    try:
        call(**fields)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def _openai(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def openai_chat(url: str, model: str) -> None:
    client = _openai(url)
    whole = client.chat.completions.create(model=model, messages=PLAIN, **GREEDY).choices[0].message.content
    assert whole
    with client.chat.completions.stream(model=model, messages=PLAIN, **GREEDY) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole


def openai_chat_tools(url: str, model: str) -> None:
    client = _openai(url)
    with client.chat.completions.stream(model=model, messages=QUESTION, tools=[TOOL], **GREEDY) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert json.loads(call.function.arguments) == PARIS
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    messages = [*QUESTION, choice.message.to_dict(), result]
    assert (
        client.chat.completions.create(model=model, messages=messages, tools=[TOOL], **GREEDY)
        .choices[0]
        .message.content
    )


def openai_completions(url: str, model: str) -> None:
    client = _openai(url)
    answer = client.completions.create(model=model, prompt=[[5, 6], [7]], logprobs=2, max_tokens=5)
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = list(client.completions.create(model=model, prompt="A list", max_tokens=5, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def openai_responses(url: str, model: str) -> None:
    client = _openai(url)
    first = client.responses.create(model=model, input="What does len do?", temperature=0)
    assert first.output_text
    fields: Any = {"model": model, "previous_response_id": first.id, "max_output_tokens": 20}
    events = list(client.responses.create(input="Go on.", stream=True, **fields))
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)


def openai_responses_background(url: str, model: str) -> None:
    client = _openai(url)
    fields: Any = {"model": model, "temperature": 0, "max_output_tokens": 60}
    with client.responses.create(input="What does len do?", background=True, stream=True, **fields) as begun:
        seen = [next(begun) for _ in range(6)]
    first = seen[0].response.id
    rest = list(client.responses.retrieve(first, stream=True, starting_after=seen[-1].sequence_number))
    assert [event.sequence_number for event in seen + rest] == list(range(len(seen + rest)))
    with client.responses.stream(response_id=first) as events:
        assert list(events)[-1].response.output_text == rest[-1].response.output_text
    item: Any = {"type": "item_reference", "id": rest[-1].response.output[0].id}
    assert client.responses.create(input=[item, {"role": "user", "content": "Go on."}], **fields).output_text


def openai_responses_tools(url: str, model: str) -> None:
    client = _openai(url)
    tools: Any = [{"type": "function", **FUNCTION, "strict": False}]
    fields: Any = {"model": model, "tools": tools, "temperature": 0, "max_output_tokens": 120}
    with client.responses.stream(input=QUESTION, **fields) as events:
        first = events.get_final_response()
    call = first.output[0]
    assert (call.type, json.loads(call.arguments)) == ("function_call", PARIS)
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'}]
    assert client.responses.create(input=result, previous_response_id=first.id, **fields).output_text


def openai_responses_reasoning(url: str, model: str) -> None:
    answer = _openai(url).responses.create(
        model=model, input="What does len do?", reasoning={"summary": "auto"}, temperature=0, extra_body=THINKING
    )
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].summary[0].text
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


def openai_errors(url: str, model: str) -> None:
    import openai

    client = _openai(url)
    create = client.chat.completions.create
    unknown = _raised(openai.NotFoundError, create, model="other", messages=PLAIN)
    assert unknown.body["code"] == "model_not_found"
    wrong = _raised(openai.BadRequestError, create, model=model, messages=PLAIN, temperature=-1)
    assert wrong.body["param"] == "temperature"
    missing = _raised(openai.NotFoundError, client.responses.retrieve, response_id="resp_none")
    assert missing.body["code"] == "response_not_found"


def litellm_chat(url: str, model: str) -> None:
    import litellm

    fields: Any = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none", **GREEDY}
    whole = litellm.completion(messages=PLAIN, **fields).choices[0].message.content
    chunks = list(litellm.completion(messages=PLAIN, stream=True, **fields))
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == whole
    call = litellm.completion(messages=QUESTION, tools=[TOOL], **fields).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == PARIS
    chunks = list(litellm.completion(messages=QUESTION, tools=[TOOL], stream=True, **fields))
    call = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == PARIS


def litellm_reasoning(url: str, model: str) -> None:
    import litellm

    fields: Any = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none", **GREEDY}
    message = litellm.completion(messages=PLAIN, extra_body=THINKING, **fields).choices[0].message
    assert message.reasoning_content
    assert message.content


def litellm_responses_and_messages(url: str, model: str) -> None:
    import litellm

    answer = litellm.responses(
        model=f"openai/{model}", input="Hi", api_base=f"{url}/v1", api_key="none", max_output_tokens=20
    )
    assert answer.output[0].content[0].text
    message = (
        litellm.completion(model=f"anthropic/{model}", messages=PLAIN, api_base=url, api_key="none", **GREEDY)
        .choices[0]
        .message
    )
    assert message.content


def langchain_chat(url: str, model: str) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", temperature=0, max_completion_tokens=120)
    whole = chat.invoke("What does len do?")
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream("What does len do?")) == whole.content


def langchain_tools(url: str, model: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    for use_responses_api in (False, True):
        chat = ChatOpenAI(
            model=model,
            base_url=f"{url}/v1",
            api_key="none",
            temperature=0,
            max_completion_tokens=120,
            use_responses_api=use_responses_api,
        ).bind_tools([TOOL])
        question = HumanMessage(QUESTION[0]["content"])
        said = chat.invoke([question])
        assert said.tool_calls[0]["args"] == PARIS
        assert chat.invoke([question, said, ToolMessage("clear", tool_call_id=said.tool_calls[0]["id"])]).text
        whole = None
        for chunk in chat.stream([question]):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        assert whole.tool_calls[0]["args"] == PARIS


def langchain_completions(url: str, model: str) -> None:
    from langchain_openai import OpenAI

    assert OpenAI(model=model, base_url=f"{url}/v1", api_key="none", max_tokens=8).invoke("A list")


def instructor_tools(url: str, model: str) -> None:
    """Its mode for models that choose for themselves: the others force a call or a schema."""
    from collections.abc import Iterable

    import instructor
    from pydantic import ConfigDict, create_model

    def without_titles(schema: dict[str, Any]) -> None:
        """The demo model knows arguments without them."""
        for field in schema["properties"].values():
            del field["title"]

    config = ConfigDict(json_schema_extra=without_titles)
    weather = create_model("get_weather", __doc__=FUNCTION["description"], __config__=config, city=str)
    client = instructor.from_openai(_openai(url), mode=instructor.Mode.PARALLEL_TOOLS)
    question: Any = [{"role": "user", "content": "How is the weather in Paris today?"}]
    found = client.chat.completions.create(
        model=model, messages=question, response_model=Iterable[weather], tool_choice="auto", **GREEDY
    )
    assert [one.city for one in found] == ["Paris"]


def instructor_structured(url: str, model: str) -> None:
    import instructor
    from pydantic import BaseModel

    class City(BaseModel):
        city: str

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(_openai(url), mode=mode)
        assert client.chat.completions.create(model=model, messages=QUESTION, response_model=City, **GREEDY).city


def _anthropic(url: str) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


# The package has no argument for the temperature any more; servers still take it.
COOL: Any = {"max_tokens": 120, "extra_body": {"temperature": 0}}
ANTHROPIC_TOOL: Any = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": SCHEMA}


def anthropic_messages(url: str, model: str) -> None:
    client = _anthropic(url)
    fields: Any = {"model": model, "messages": PLAIN, "system": "Be brief.", **COOL}
    whole = client.messages.create(**fields)
    assert whole.content[0].text
    with client.messages.stream(**fields) as stream:
        assert stream.get_final_message().content[0].text == whole.content[0].text
    counted = client.messages.count_tokens(model=model, messages=PLAIN, system="Be brief.", tools=[ANTHROPIC_TOOL])
    assert counted.input_tokens > whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def anthropic_tools(url: str, model: str) -> None:
    client = _anthropic(url)
    fields: Any = {"model": model, "tools": [ANTHROPIC_TOOL], **COOL}
    with client.messages.stream(messages=QUESTION, **fields) as stream:
        said = stream.get_final_message()
    assert said.stop_reason == "tool_use"
    use = said.content[-1]
    assert (use.type, use.input) == ("tool_use", PARIS)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": '{"sky": "clear"}'}
    messages = [*QUESTION, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=messages, **fields).content[0].text


def anthropic_thinking(url: str, model: str) -> None:
    fields: Any = {"model": model, "messages": PLAIN, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with _anthropic(url).messages.stream(max_tokens=1200, extra_body=COOL["extra_body"], **fields) as stream:
        said = stream.get_final_message()
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[0].thinking


def anthropic_errors(url: str, model: str) -> None:
    import anthropic

    create = _anthropic(url).messages.create
    unknown = _raised(anthropic.NotFoundError, create, model="other", messages=PLAIN, max_tokens=5)
    assert unknown.body["error"]["type"] == "not_found_error"


CHECKS: dict[str, tuple[Check, ...]] = {
    "openai": (
        openai_chat,
        openai_chat_tools,
        openai_completions,
        openai_responses,
        openai_responses_background,
        openai_responses_tools,
        openai_responses_reasoning,
        openai_errors,
    ),
    "litellm": (litellm_chat, litellm_reasoning, litellm_responses_and_messages),
    "langchain-openai": (langchain_chat, langchain_tools, langchain_completions),
    "instructor": (instructor_tools, instructor_structured),
    "anthropic": (anthropic_messages, anthropic_tools, anthropic_thinking, anthropic_errors),
}
