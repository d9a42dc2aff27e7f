"""The questions that the model is judged with, the same on every machine, and the verdicts on the answers."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalogue import Entry, first_sentence
from .chats import JUDGED_PHRASINGS, SMALL_TALK, UNKNOWN
from .render import Dialogue
from .tool_dialogues import offered
from .tools import TOOLS, make_call
from .values import Values

JUDGED_FUNCTIONS = "judged_functions.json"
NUM_FUNCTIONS = 200
NUM_TOOL_QUESTIONS = 200
NUM_NO_CALL = 100
MAX_ANSWER_TOKENS = 96
F1_NEEDED = 0.6


@dataclass(frozen=True)
class Question:
    """One question: `expected` is a summary, a list of calls, or nothing where no call is due."""

    kind: str  # "function", "tool" or "no_call"
    dialogue: Dialogue
    summary: str = ""
    calls: tuple[tuple[str, dict], ...] = ()


def choose_functions(entries: Sequence[Entry]) -> list[list[str]]:
    """[name, summary] of 200 functions and methods with docstrings, by the order of their names' hashes."""
    callables = [entry for entry in entries if entry.is_callable()]
    callables.sort(key=lambda e: hashlib.sha256(f"judged:{e.name}".encode()).hexdigest())
    return [[e.name, e.summary] for e in callables[:NUM_FUNCTIONS]]


def function_questions(model_folder: Path, count: int = NUM_FUNCTIONS) -> list[Question]:
    functions = json.loads((model_folder / JUDGED_FUNCTIONS).read_text(encoding="utf-8"))[:count]
    questions = []
    for phrasing in JUDGED_PHRASINGS:
        for name, summary in functions:
            messages = [{"role": "user", "content": phrasing.format(name=name)}]
            questions.append(Question("function", Dialogue(messages), summary=summary))
    return questions


def tool_questions(count: int = NUM_TOOL_QUESTIONS, seed: int = 20_001) -> list[Question]:
    """Questions whose arguments come from the values kept for judging, with one to six tools offered."""
    rng = random.Random(seed)
    values = Values(rng, evaluation=True)
    questions = []
    for index in range(count):
        call = make_call(TOOLS[index % len(TOOLS)], values)
        messages = [{"role": "user", "content": call.question}]
        dialogue = Dialogue(messages, offered(rng, [call.tool]))
        questions.append(Question("tool", dialogue, calls=((call.tool.name, call.arguments),)))
    return questions


def no_call_questions(model_folder: Path, count: int = NUM_NO_CALL, seed: int = 20_002) -> list[Question]:
    """Small talk, questions about functions and unanswerable ones, with tools offered that serve none of them."""
    rng = random.Random(seed)
    values = Values(rng, evaluation=True)
    functions = json.loads((model_folder / JUDGED_FUNCTIONS).read_text(encoding="utf-8"))
    unknown = [text for text in UNKNOWN if "{phrase}" not in text]  # those may well be a matter for a search tool
    questions = []
    for index in range(count):
        if index % 3 == 0:
            text = rng.choice(SMALL_TALK)[0]
        elif index % 3 == 1:
            text = JUDGED_PHRASINGS[index % len(JUDGED_PHRASINGS)].format(name=rng.choice(functions)[0])
        else:
            drawn = {kind: getattr(values, kind)() for kind in ("place", "person", "date", "language", "word")}
            text = rng.choice(unknown).format(**drawn)
        dialogue = Dialogue([{"role": "user", "content": text}], offered(rng, [], low=1))
        questions.append(Question("no_call", dialogue))
    return questions


def all_questions(model_folder: Path, quick: bool = False) -> list[Question]:
    """Every question; the quick form has about a tenth of them."""
    functions, tools, none = (20, 25, 15) if quick else (NUM_FUNCTIONS, NUM_TOOL_QUESTIONS, NUM_NO_CALL)
    questions = function_questions(model_folder, functions) + tool_questions(tools)
    return questions + no_call_questions(model_folder, none)


def word_f1(said: str, wanted: str) -> float:
    """F1 over the words of two sentences, case and punctuation aside, each word as often as it occurs."""
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (said, wanted))
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def parse_calls(text: str) -> tuple[list[tuple[str, dict]], bool]:
    """The tool calls in a text, and whether all of it that looks like a call is well-formed."""
    calls: list[tuple[str, dict]] = []
    bodies = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
    well_formed = len(bodies) == text.count("<tool_call>") == text.count("</tool_call>")
    for body in bodies:
        try:
            call = json.loads(body)
        except json.JSONDecodeError:
            return calls, False
        name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return calls, False
        calls.append((name, arguments))
    return calls, well_formed


def same_arguments(said: dict, wanted: dict) -> bool:
    """Equal names, types and values; an integral float counts as the integer that it is."""
    numbers = (int, float)
    return said.keys() == wanted.keys() and all(
        said[k] == v and (type(said[k]) is type(v) or (isinstance(v, numbers) and isinstance(said[k], numbers)))
        for k, v in wanted.items()
    )


@dataclass(frozen=True)
class Reply:
    """What the model said; `calls` is already parsed where a server did that."""

    text: str
    ended: bool
    calls: tuple[tuple[str, dict], ...] = ()
    well_formed: bool = True


def judge(questions: Sequence[Question], replies: Sequence[Reply]) -> dict[str, float]:
    """The table's figures, each a share between 0 and 1."""
    rows: dict[str, list[bool]] = {}
    for question, reply in zip(questions, replies, strict=True):
        if question.kind == "function":
            score = word_f1(first_sentence(reply.text), question.summary)
            rows.setdefault("summary_f1", []).append(score >= F1_NEEDED)
            rows.setdefault("ends_by_itself", []).append(reply.ended)
        elif question.kind == "tool":
            right = [name for name, _ in reply.calls] == [name for name, _ in question.calls]
            pairs = zip(reply.calls, question.calls, strict=True) if right else ()
            exact = right and all(same_arguments(said, wanted) for (_, said), (_, wanted) in pairs)
            rows.setdefault("right_tool", []).append(right)
            rows.setdefault("exact_arguments", []).append(exact)
            rows.setdefault("well_formed", []).append(reply.well_formed and bool(reply.calls))
        else:
            rows.setdefault("no_call", []).append(not reply.calls and "<tool_call>" not in reply.text)
    return {name: sum(values) / len(values) for name, values in rows.items()}


TARGETS = {
    "summary_f1": (0.80, "first sentence has the docstring's summary (word-F1 >= 0.6)"),
    "ends_by_itself": (0.98, f"ends by itself within {MAX_ANSWER_TOKENS} tokens"),
    "right_tool": (0.95, "right tool"),
    "exact_arguments": (0.85, "arguments exactly right"),
    "well_formed": (0.99, "tool call well-formed"),
    "no_call": (0.95, "no call where none is due"),
}


def table(figures: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | wanted | reached |", "| --- | --- | --- |"]
    for name, (wanted, title) in TARGETS.items():
        if name in figures:
            lines.append(f"| {title} | >= {wanted:.0%} | {figures[name]:.1%} |")
    return "\n".join(lines)
