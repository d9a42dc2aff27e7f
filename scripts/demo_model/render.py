"""Turns a dialogue into the template's text, cut into what is given and what the model has to say.

It writes exactly what the chat template in the tokenizer's folder writes, only faster; a test compares the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from .tokenizer import BOS, THINK_FIRST, TOOLS_AFTER, TOOLS_BEFORE


@dataclass
class Dialogue:
    """A conversation; an assistant's message may have `reasoning` and `tool_calls` [(name, arguments)]."""

    messages: list[dict]
    tools: list[dict] = field(default_factory=list)
    system: str = ""
    thinking: bool = False


def calls_text(calls: list[tuple[str, dict]]) -> str:
    """Tool calls as the model writes them."""
    bodies = (f'{{"name": "{name}", "arguments": {json.dumps(args, ensure_ascii=False)}}}' for name, args in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def assistant_text(message: dict) -> str:
    """What the model writes in its turn, the reasoning included."""
    thought = f"<think>\n{message['reasoning']}\n</think>\n\n" if message.get("reasoning") else ""
    parts = [part for part in (message.get("content"), calls_text(message.get("tool_calls", []))) if part]
    return thought + "\n".join(parts)


def render(dialogue: Dialogue) -> list[tuple[str, bool]]:
    """Pieces of text, each with whether the model is trained to say it."""
    head = BOS
    blocks = [dialogue.system] if dialogue.system else []
    if dialogue.tools:
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools)
        blocks.append(TOOLS_BEFORE + listed + TOOLS_AFTER)
    if dialogue.thinking:
        blocks.append(THINK_FIRST)
    if blocks:
        head += "<|system|>\n" + "\n\n".join(blocks) + "<|end|>\n"
    pieces = [(head, False)]
    for message in dialogue.messages:
        if message["role"] == "assistant":
            pieces += [("<|assistant|>\n", False), (assistant_text(message) + "<|end|>", True), ("\n", False)]
        elif message["role"] == "tool":
            text = f"<|tool|>\n<tool_response>\n{message['content']}\n</tool_response><|end|>\n"
            pieces.append((text, False))
        else:
            pieces.append((f"<|{message['role']}|>\n{message['content']}<|end|>\n", False))
    return pieces


def messages_for_api(dialogue: Dialogue) -> list[dict]:
    """The same conversation as messages of the OpenAI API."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for message in dialogue.messages:
        plain = {"role": message["role"], "content": message.get("content")}
        if message.get("tool_calls"):
            plain["tool_calls"] = [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in message["tool_calls"]
            ]
        messages.append(plain)
    return messages
