"""The making of the demo model: template, dialogues, questions, verdicts, and the shipped folder."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "demo_model"
sys.path.insert(0, str(REPOSITORY / "scripts"))

from demo_model.catalogue import Entry, first_sentence, summary_of  # noqa: E402
from demo_model.chats import Chats, answer  # noqa: E402
from demo_model.render import Dialogue, messages_for_api, render  # noqa: E402
from demo_model.tokenizer import ADDED_TOKENS, CHAT_TEMPLATE, VOCAB_SIZE  # noqa: E402
from demo_model.tool_dialogues import ToolDialogues  # noqa: E402
from demo_model.tools import TOOLS  # noqa: E402

from demo_model import collect, dataset, offline, questions  # noqa: E402

ENTRIES = [
    Entry("textwrap.dedent", "textwrap", "(text)", "Remove any common leading whitespace.", True),
    Entry("textwrap.fill", "textwrap", "(text, width=70)", "Fill a single paragraph of text.", True),
    Entry("textwrap.wrap", "textwrap", "(text, width=70)", "Wrap a single paragraph of text.", True),
    Entry("textwrap.indent", "textwrap", "(text, prefix)", "Add a prefix to selected lines.", True),
    Entry("len", "builtins", "(obj, /)", "Return the number of items in a container.", True),
]


def drawn_dialogues(count: int) -> list[Dialogue]:
    rng = random.Random(5)
    chats = Chats(ENTRIES, ["apple", "river"])
    tools = ToolDialogues(["apple", "river"], chats.dialogue)
    return [draw(rng) for _ in range(count) for draw in (chats.dialogue, chats.without_tool, tools.dialogue)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(MODEL)


def test_renderer_writes_what_the_template_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    for dialogue in drawn_dialogues(60):
        if any(message.get("reasoning") for message in dialogue.messages):
            continue  # the template drops the reasoning of earlier turns
        expected = tokenizer.apply_chat_template(
            messages_for_api(dialogue),
            tools=dialogue.tools or None,
            tokenize=False,
            enable_thinking=dialogue.thinking,
            chat_template=CHAT_TEMPLATE,
        )
        assert "".join(text for text, _ in render(dialogue)) == expected


def test_pieces_have_the_tokens_of_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    for dialogue in drawn_dialogues(20):
        pieces = [text for text, _ in render(dialogue)]
        apart = [i for text in pieces for i in tokenizer.encode(text, add_special_tokens=False)]
        assert apart == tokenizer.encode("".join(pieces), add_special_tokens=False)


def test_template_renders_in_the_sandbox() -> None:
    template = ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."},
    ]
    text = template.render(messages=messages, tools=None, bos_token="<|bos|>", add_generation_prompt=True)
    assert text == (
        "<|bos|><|user|>\nHi<|end|>\n"
        '<|assistant|>\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|end|>\n'
        "<|tool|>\n<tool_response>\n2\n</tool_response><|end|>\n<|assistant|>\nTwo.<|end|>\n<|assistant|>\n"
    )
    thinking = template.render(messages=messages[:1], bos_token="", enable_thinking=True)
    assert thinking.startswith("<|system|>\nThink before you answer.<|end|>\n<|user|>")


def test_shipped_folder_is_complete(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.convert_tokens_to_ids(ADDED_TOKENS) == list(range(len(ADDED_TOKENS)))
    assert tokenizer.decode(tokenizer.encode("<tool_call>é 你好\n"), skip_special_tokens=True) == "<tool_call>é 你好\n"
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 24_000_000
    assert (MODEL / "tokenizer.json").read_bytes() == (MODEL / "draft" / "tokenizer.json").read_bytes()
    for folder in (MODEL, MODEL / "draft"):
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == VOCAB_SIZE
        assert config["tie_word_embeddings"]


def test_questions_are_the_same_every_time() -> None:
    first, second = questions.tool_questions(), questions.tool_questions()
    assert first == second
    assert {question.calls[0][0] for question in first} == {tool.name for tool in TOOLS}


def test_verdicts() -> None:
    tool = questions.tool_questions(1)[0]
    function = questions.Question("function", Dialogue([]), summary="Return the number of items.")
    none = questions.Question("no_call", Dialogue([]))
    right = questions.Reply("", True, tool.calls)
    said = questions.Reply("Return the number of items. Call it as len(obj).", True)
    assert set(questions.judge([tool, function, none], [right, said, said]).values()) == {1.0}
    wrong = questions.Reply("<tool_call>\n{]\n</tool_call>", False, (), False)
    assert set(questions.judge([tool, function, none], [wrong] * 3).values()) == {0.0}


@pytest.mark.parametrize(
    ("text", "num_calls", "well_formed"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', 1, True),
        ('<tool_call>\n{"name": "f", "arguments": {}}', 0, False),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', 0, False),
        ("No call.", 0, True),
    ],
)
def test_parse_calls(text: str, num_calls: int, well_formed: bool) -> None:
    calls, verdict = questions.parse_calls(text)
    assert (len(calls), verdict) == (num_calls, well_formed)


def test_answers_begin_with_the_summary() -> None:
    assert all(first_sentence(answer(entry)) == entry.summary for entry in ENTRIES)
    doc = "len(obj)\n\nReturn the number of :class:`items` in a *list*. More."
    assert summary_of(doc) == "Return the number of items in a list."


def test_accepted_lengths() -> None:
    assert offline.accepted_lengths([True] * 10) == [5, 5]
    assert offline.accepted_lengths([False, True, False, True]) == [1, 2, 1]


def test_heldout_paragraphs_do_not_reach_training() -> None:
    mentions = collect.re.compile(r":mod:`zipfile\b")
    shared = "A paragraph that both of them have, long enough to count as the same."
    text = f"One.\n\n{shared}\n\nSee :mod:`zipfile`.\n\nTwo."
    assert collect.without_heldout(text, {shared}, mentions) == "One.\n\nTwo."
    assert collect.is_heldout("zipfile")
    assert not collect.is_heldout("json.decoder")


def test_trigram_baseline_knows_what_repeats() -> None:
    stream = dataset.np.array([0, 30, 31, 32] * 500, dtype="uint16") | dataset.TRAINED
    assert dataset.trigram_bits(stream, stream[:400]) < 400 * 0.2
