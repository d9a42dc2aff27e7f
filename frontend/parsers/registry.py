"""All formats by name, and which one a model's chat template speaks of."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Format:
    """Where a parser stands, and what only its models' templates have: each of these texts."""

    path: str
    marks: tuple[str, ...]

    def load(self) -> Any:
        module_name, class_name = self.path.split(":")
        return getattr(importlib.import_module(f"frontend.parsers.{module_name}"), class_name)


HARMONY = "gpt_oss"

# The first whose marks are all in the template is taken: the special ones stand before the general ones.
TOOL_FORMATS = {
    "gpt_oss": Format("gpt_oss:Harmony", ("<|channel|>", "<|message|>")),
    "kimi_k2": Format("kimi_k2:KimiK2", ("<|tool_calls_section_begin|>",)),
    "deepseek_v3": Format("deepseek_v3:DeepSeekV3", ("<｜tool▁calls▁begin｜>",)),
    "qwen3_coder": Format("qwen3_coder:Qwen3Coder", ("<function=",)),
    "glm": Format("glm:GlmTools", ("<arg_key>",)),
    "mistral": Format("mistral:Mistral", ("[TOOL_CALLS]",)),
    "phi4": Format("phi4:Phi4", ("<|/tool|>",)),
    "granite": Format("granite:Granite", ("<|start_of_role|>", "tool_call")),
    "pythonic": Format("pythonic:Pythonic", ("[func_name1(",)),
    "llama3_json": Format("llama3_json:Llama3Json", ("<|start_header_id|>", '"parameters":')),
    "hermes": Format("hermes:Hermes", ("<tool_call>",)),
}
REASONING_FORMATS = {
    "gpt_oss": Format("gpt_oss:Harmony", ("<|channel|>", "<|message|>")),
    "mistral": Format("mistral:MistralReasoning", ("[THINK]",)),
    "deepseek_r1": Format("think:DeepSeekR1", ("<｜Assistant｜>", "</think>")),
    "glm": Format("think:Glm", ("[gMASK]", "</think>")),
    "qwen3": Format("think:Qwen3", ("</think>",)),
}


class UnknownFormat(ValueError):
    """There is no such parser; the message is a sentence."""


def resolve_formats(tool_call_parser: str, reasoning_parser: str, templates: str) -> tuple[str | None, str | None]:
    """The tool and the reasoning format for what a user chose: a name, `none`, or `auto`."""
    tools = _resolve("--tool-call-parser", tool_call_parser, TOOL_FORMATS, templates)
    reasoning = _resolve("--reasoning-parser", reasoning_parser, REASONING_FORMATS, templates)
    if HARMONY in (tools, reasoning) and tools != reasoning:
        raise UnknownFormat(f"{HARMONY} is one format for tool calls and reasoning: choose it for both parsers.")
    return tools, reasoning


def _resolve(flag: str, choice: str, formats: Mapping[str, Format], templates: str) -> str | None:
    if choice == "auto":
        return detect(formats, templates)
    if choice != "none" and choice not in formats:
        raise UnknownFormat(f"{flag} {choice}: there is no such format; known are {', '.join(formats)}.")
    return None if choice == "none" else choice


def detect(formats: Mapping[str, Format], templates: str) -> str | None:
    """The name of the format that these templates are written for."""
    return next((name for name, form in formats.items() if all(mark in templates for mark in form.marks)), None)
