"""Which formats a model's chat template speaks of."""

from pathlib import Path

import pytest

from frontend.chat_template import load_chat_template
from frontend.parsers.registry import UnknownFormat, resolve_formats

DEMO_MODEL = Path(__file__).parents[3] / "demo_model"
TEMPLATES = {
    "<|start|>assistant<|channel|>final<|message|>": ("gpt_oss", "gpt_oss"),
    "<|tool_calls_section_begin|>": ("kimi_k2", None),
    "<｜Assistant｜></think><｜tool▁calls▁begin｜>": ("deepseek_v3", "deepseek_r1"),
    "<tool_call>\n<function=name>\n<parameter=x>": ("qwen3_coder", None),
    "[gMASK]<sop><tool_call>{name}<arg_key></think>": ("glm", "glm"),
    "[THINK][/THINK][TOOL_CALLS][ARGS]": ("mistral", "mistral"),
    "<|tool|>{{ tools }}<|/tool|>": ("phi4", None),
    "<|start_of_role|>write <|tool_call|>": ("granite", None),
    "<|header_start|>[func_name1(params_name1=value)]": ("pythonic", None),
    '<|start_header_id|>{"name": function name, "parameters": dictionary}': ("llama3_json", None),
    "<tool_call>\n{}\n</tool_call><think>\n\n</think>": ("hermes", "qwen3"),
    "{{ messages }}": (None, None),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_formats_are_recognised(template: str) -> None:
    assert resolve_formats("auto", "auto", template) == TEMPLATES[template]


def test_the_demo_models_template() -> None:
    template = load_chat_template(str(DEMO_MODEL), None, {})
    assert resolve_formats("auto", "auto", template.source) == ("hermes", "qwen3")


def test_a_choice_wins() -> None:
    assert resolve_formats("mistral", "none", "<tool_call></think>") == ("mistral", None)
    with pytest.raises(UnknownFormat, match="--tool-call-parser nobody: there is no such format; known are gpt_oss"):
        resolve_formats("nobody", "auto", "")
    with pytest.raises(UnknownFormat, match="choose it for both"):
        resolve_formats("gpt_oss", "none", "")
