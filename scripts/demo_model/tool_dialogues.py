"""Dialogues that offer tools: one call, several calls, an answer from the reply, and no call where none is due."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .chats import NO_TOOL
from .render import Dialogue
from .tools import TOOLS, Call, Tool, made_up_tool, make_call, make_reply
from .values import Values

POLITE = (
    "",
    "",
    "",
    "",
    "Please help me. ",
    "Hello! ",
    "Hi, ",
    "One more thing. ",
    "Quick question: ",
    "I need help. ",
)
REQUESTS = ("", "", "", "", " Thanks.", " Thank you!", " Please be quick.")
SYSTEMS = ("", "", "", "You are a helpful assistant.", "You are Quire, a small assistant.", "Answer briefly.")
JOINS = (" Also: ", " And then: ", " And one more: ", " Then: ")


def offered(rng: random.Random, wanted: Sequence[Tool], low: int = 0, high: int = 5) -> list[dict]:
    """The wanted tools among some others, in random order, as schemas."""
    others = [tool for tool in TOOLS if tool not in wanted]
    tools = [*wanted, *rng.sample(others, rng.randint(low, high))]
    unique = list({tool.name: tool for tool in tools}.values())
    rng.shuffle(unique)
    return [tool.schema() for tool in unique]


def call_message(calls: Sequence[Call]) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": [(call.tool.name, call.arguments) for call in calls]}


def reasoning_for(call: Call) -> str:
    """The short thought before a call."""
    named = ", ".join(f"{name} = {value}" for name, value in call.arguments.items())
    return f"The tool {call.tool.name} fits. Arguments: {named}."


def answered(calls: Sequence[Call], values: Values) -> list[dict]:
    """The tools' replies and the assistant's sentence about them."""
    messages, sentences = [], []
    for call in calls:
        reply, sentence = make_reply(call, values)
        messages.append({"role": "tool", "content": json.dumps(reply, ensure_ascii=False)})
        sentences.append(sentence)
    return [*messages, {"role": "assistant", "content": " ".join(sentences)}]


@dataclass(frozen=True)
class ToolDialogues:
    """Draws dialogues; `most_others` tools at most are offered beside those that are needed."""

    words: Sequence[str]
    plain: Callable[[random.Random], Dialogue]
    most_others: int = 5
    kinds: tuple[tuple[str, float], ...] = (("single", 0.6), ("several", 0.14), ("session", 0.08), ("none", 0.18))

    def single(self, rng: random.Random) -> Dialogue:
        """A question that one tool serves; mostly the reply and the spoken answer follow."""
        values = Values(rng, more_words=self.words)
        tool = made_up_tool(rng) if rng.random() < 0.15 else rng.choice(TOOLS)
        call = make_call(tool, values)
        messages = [{"role": "user", "content": rng.choice(POLITE) + call.question + rng.choice(REQUESTS)}]
        thinking = rng.random() < 0.1
        asked = call_message([call])
        if thinking:
            asked["reasoning"] = reasoning_for(call)
        messages.append(asked)
        if not thinking and rng.random() < 0.6:
            messages += answered([call], values)
        return Dialogue(messages, offered(rng, [tool], high=self.most_others), rng.choice(SYSTEMS), thinking)

    def several(self, rng: random.Random) -> Dialogue:
        """Two questions in one message, and two calls in one answer."""
        values = Values(rng, more_words=self.words)
        first = make_call(rng.choice(TOOLS), values)
        second = make_call(first.tool if rng.random() < 0.5 else rng.choice(TOOLS), values)
        messages = [{"role": "user", "content": first.question + rng.choice(JOINS) + second.question}]
        messages += [call_message([first, second]), *answered([first, second], values)]
        tools = offered(rng, [first.tool, second.tool], high=min(3, self.most_others))
        return Dialogue(messages, tools, rng.choice(SYSTEMS))

    def session(self, rng: random.Random) -> Dialogue:
        """Some questions to the same two tools, one after the other: much copying for little text."""
        values = Values(rng, more_words=self.words)
        tools = rng.sample(TOOLS, 2)
        messages: list[dict] = []
        for _ in range(rng.randint(2, 5)):
            call = make_call(rng.choice(tools), values)
            messages += [{"role": "user", "content": call.question}, call_message([call]), *answered([call], values)]
        return Dialogue(messages, offered(rng, tools, high=min(1, self.most_others)), rng.choice(SYSTEMS))

    def none(self, rng: random.Random) -> Dialogue:
        """A conversation in which tools are offered and none is needed, or none fits."""
        if rng.random() < 0.75:
            dialogue = self.plain(rng)
            dialogue.tools = offered(rng, [], low=1, high=self.most_others)
            return dialogue
        call = make_call(rng.choice(TOOLS), Values(rng, more_words=self.words))
        others = rng.sample([tool for tool in TOOLS if tool is not call.tool], rng.randint(1, self.most_others))
        messages = [{"role": "user", "content": call.question}, {"role": "assistant", "content": NO_TOOL}]
        return Dialogue(messages, [tool.schema() for tool in others], rng.choice(SYSTEMS))

    def dialogue(self, rng: random.Random) -> Dialogue:
        """One dialogue of the mixture."""
        names, weights = zip(*self.kinds, strict=True)
        return getattr(self, rng.choices(names, weights)[0])(rng)
