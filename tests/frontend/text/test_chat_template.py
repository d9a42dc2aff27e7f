"""What is particular to templates here: the place of a continued message, arguments, parts, tools, names."""

from typing import Any

import pytest

from frontend.chat_template import ChatTemplate, RequestTemplates
from frontend.errors import ApiError

TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
PARTS = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}<end>{% endfor %}"
USER = {"role": "user", "content": "e<e"}


def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    defaults = {"tools": None, "add_generation_prompt": False, "continue_final_message": False, "kwargs": {}}
    return ChatTemplate({"default": source}, {"eos_token": "</s>"}).render(messages, **{**defaults, **options})


def continued(source: str, content: Any, **fields: Any) -> str:
    messages = [USER, {"role": "assistant", "content": content, **fields}]
    return render(source, messages, continue_final_message=True).removeprefix("<user>e<e<end><assistant>")


@pytest.mark.parametrize("source", [PLAIN, TRIMMING, PARTS])
@pytest.mark.parametrize(
    "content", ["e", "end", "<end>", "", " ", "The answer is ", "a\n\n", "<assistant>", "e<end>e<en"]
)
def test_a_message_is_continued_to_the_letter(source: str, content: str) -> None:
    assert continued(source, content) == (content.lstrip() if source == TRIMMING else content)


def test_nothing_yet_is_continued_too() -> None:
    assert continued(PARTS, [{"type": "text", "text": ""}]) == ""
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "reasoning": "Hm."}]
    assert render(PLAIN, messages, continue_final_message=True) == "<user>e<e<end><assistant>"


def test_the_last_part_is_continued() -> None:
    parts = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two "}]
    assert continued(PARTS, parts) == "One. Two "
    assert continued(PLAIN, parts) == "One.  Two "


def test_the_place_is_behind_what_stands_twice() -> None:
    source = "{% for m in messages %}{{ m.content[:3] }}: {{ m.content }}<end>{% endfor %}"
    messages = [USER, {"role": "assistant", "content": "x"}]
    assert render(source, messages, continue_final_message=True) == "e<e: e<e<end>x: x"


@pytest.mark.parametrize(
    ("source", "fields", "reason"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", {}, "changes the last message"),
        ("{% for m in messages %}{{ m.content.split('</t>') | last }}{% endfor %}", {}, "changes the last message"),
        ("{{ messages[0].content }}", {}, "changes the last message"),
        (PLAIN, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "no text to go on with"),
    ],
)
def test_what_cannot_be_continued_is_refused(source: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as refusal:
        continued(source, "a</t>b", **fields)
    assert refusal.value.param == "continue_final_message"


ARGUMENTS = {"a": "x\n<é>", "b": True, "c": {"d": [1, None]}}
AS_JSON = '{"a": "x\\n<é>", "b": true, "c": {"d": [1, null]}}'


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("f.arguments", AS_JSON),
        ("f.name ~ f.arguments", f"look{AS_JSON}"),
        ("'(' + f.arguments + ')'", f"({AS_JSON})"),
        ("f['name'] + f['arguments'] + '.'", f"look{AS_JSON}."),
        ("f.arguments | string | length", str(len(AS_JSON))),
        ("'%s!' | format(f.arguments)", f"{AS_JSON}!"),
        ("[f.arguments, f.arguments] | join('|')", f"{AS_JSON}|{AS_JSON}"),
        ("f.arguments | trim", AS_JSON),
        ("f.arguments | tojson", AS_JSON),
        (
            "f.arguments | tojson(ensure_ascii=true, separators=(',', ':'))",
            AS_JSON.replace("é", "\\u00e9").replace(": ", ":").replace(", ", ","),
        ),
        ("f.arguments if f.arguments is string else f.arguments | tojson", AS_JSON),
        ("f.arguments is mapping", "True"),
        ("f.arguments.a", "x\n<é>"),
        ("f.arguments.c", '{"d": [1, null]}'),
        ("f.arguments.c.d ~ ''", "[1, null]"),
        ("f.arguments.items() | map('last') | list | tojson", '["x\\n<é>", true, {"d": [1, null]}]'),
        ("f | tojson", f'{{"name": "look", "arguments": {AS_JSON}}}'),
    ],
)
def test_arguments_are_json_however_they_are_written(expression: str, text: str) -> None:
    source = "{% set f = messages[0].tool_calls[0].function %}{{ " + expression + " }}"
    call = {"type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
    assert render(source, [{"role": "assistant", "tool_calls": [call]}]) == text


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    arguments: dict[str, Any] = {}
    for _ in range(5000):
        arguments = {"a": arguments}
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(ApiError, match="nested so deeply"):
        render(PLAIN, [{"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize("given", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_has_all_of_its_names(given: str) -> None:
    source = "{% for m in messages %}{{ m.reasoning }}|{{ m.thinking }}|{{ m.reasoning_content }}{% endfor %}"
    assert render(source, [{"role": "assistant", "content": "", given: "R"}]) == "R|R|R"
    assert render(source, [{"role": "assistant", "content": ""}]) == "||"


def test_a_content_that_is_null_is_no_reason_to_fail() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    assert render("{{ messages[0].content is defined }}", messages) == "False"
    assert render("{{ messages[0].content + '.' }}", messages) == "."
    with pytest.raises(ApiError, match="cannot render"):
        render("{{ messages[0].nothing + '.' }}", messages)


TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools %}{{ tools | tojson }}{% endif %}",
        "{% if own is defined %}{% set tools = own %}{% endif %}{{ tools }}",
        "{% macro shown(these) %}{{ these }}{% endmacro %}{{ shown(tools) }}",
        "{% for tool in tools %}{{ tool }}{% endfor %}",
    ],
)
def test_tools_are_shown(source: str) -> None:
    assert "f" in render(source, [USER], tools=TOOLS)


@pytest.mark.parametrize(
    "source", [PLAIN, "{# tools #}tools", "{{ 'tools' }}", "{% macro shown(tools) %}{{ tools }}{% endmacro %}"]
)
def test_tools_are_never_dropped(source: str) -> None:
    assert render(source, [USER], tools=[]) == render(source, [USER])
    with pytest.raises(ApiError, match="no place for them") as refusal:
        render(source, [USER], tools=TOOLS)
    assert (refusal.value.status, refusal.value.param) == (400, "tools")


def test_a_template_may_be_asked_for_by_its_name() -> None:
    model = ChatTemplate({"default": PLAIN, "rag": "{{ eos_token }}RAG"}, {"eos_token": "</s>"})
    templates = RequestTemplates(model, are_trusted=False)
    options: Any = {"tools": None, "add_generation_prompt": True, "continue_final_message": False, "kwargs": {}}
    assert templates.compile("rag").render([USER], **options) == "</s>RAG"
    with pytest.raises(ApiError, match="--trust-request-chat-template"):
        templates.compile("other")


def test_a_default_that_is_missing_is_said() -> None:
    model = ChatTemplate({"tool_use": "{{ tools }}", "rag": ""}, {})
    options: Any = {"add_generation_prompt": True, "continue_final_message": False, "kwargs": {}}
    with pytest.raises(ApiError, match=r"no default chat template, but others by name .'rag', 'tool_use'."):
        model.render([USER], tools=None, **options)
    assert "'f'" in model.render([USER], tools=TOOLS, **options)
