"""The model card: figures.json collects what training and judging measured, README.md shows it."""

# ruff: noqa: E501 - the card is Markdown

from __future__ import annotations

import json
from pathlib import Path

from .collect import FURTHER_PACKAGES, REFERENCE_PACKAGE
from .questions import JUDGED_PHRASINGS, MAX_ANSWER_TOKENS, NUM_FUNCTIONS, NUM_NO_CALL, NUM_TOOL_QUESTIONS, table

FIGURES = "figures.json"

SMALL_RECIPE = (
    " These weights come from its small form (`--small`), made for a machine without a GPU: a few million tokens, a few "
    "hundred functions, dialogues with few tools. The full form, several thousand functions and several hundred million "
    "tokens, wants a GPU; it has not been run yet."
)

CARD = """# Quire's demo model

A Llama of {millions:.1f} million parameters that was trained from scratch in {minutes:.0f} minutes on {hardware}, so that
Quire can be tried, tested and judged on a machine that can download nothing. It is taught to describe functions of the
Python standard library, to call tools, to think briefly on request, and to say when it does not know something; how far
that went stands under Figures. It is no assistant: nothing else that it says is to be relied on.

| | model | draft |
| --- | --- | --- |
| parameters | {main_parameters:,} | {draft_parameters:,} |
| hidden size, layers | 384, 6 | 96, 2 |
| query heads, key-value heads, head dimension | 6, 2, 64 | 2, 1, 64 |
| intermediate size | 768 | 128 |
| weights | bf16, {main_megabytes:.1f} MB | bf16, {draft_megabytes:.1f} MB |

Both share a byte-level BPE tokenizer of 8,192 entries and a context of 2,048 tokens; embeddings are tied. `draft/` is a
model folder of its own, for speculative decoding.

## Figures

{table}
| held-out documentation, bits per byte | <= 1.5 | {bits_per_byte:.3f} |
| the same by a trigram model (Witten-Bell) over the same tokens | | {trigram_bits_per_byte:.3f} |
| acceptance length of the draft, 4 tokens drafted, greedy chat | >= 2.5 | {acceptance} |
| all files of this folder | <= 24 MB | {megabytes:.2f} MB |

- {functions} functions are asked in {phrasings} phrasings, of which the model has seen the first with every function and
  the others with none: {phrasing_list}. Answers have at most {max_tokens} tokens. The functions are in
  `judged_functions.json`.
- {tool_questions} questions to the known tools have arguments from lists kept for judging, or made-up words; {no_call}
  questions come with tools that do not serve them. All are greedy, drawn by `scripts/demo_model/questions.py`.
- Held out is whole modules ({heldout}): their docstrings and pages, paragraphs elsewhere that repeat or mention
  them, and chats about them are not trained on. The page of `os.path`, which tells of the same functions as the two
  path modules (1.5 % of the held-out text), is.
- Acceptance length is the mean number of tokens that one run of the model yields: accepted drafted tokens plus one. It
  is counted over the greedy answers to the questions above, the first token of each answer aside.{acceptance_by_kind}

`python scripts/eval_demo_model.py --backend transformers` repeats them offline; with `--base-url` it asks a server.

## Chat format

`<|system|>`, `<|user|>`, `<|assistant|>` or `<|tool|>`, a line break, the text, `<|end|>`, a line break. Tools stand in
the system message and are called as hermes models do, `<tool_call>` around JSON with `name` and `arguments`. With
`enable_thinking=True` in the template's arguments the answer begins with reasoning between `<think>` and `</think>`.

## Data

- {entries:,} functions, methods and classes of Python's standard library: signature and first sentence of the docstring
  or of the reference page. Python's documentation is under the PSF licence version 2.
- {train_megabytes:.0f} MB of documentation: docstrings of the standard library, `{reference}` (PSF-2.0), and, for their
  English, pages or docstrings of other Debian packages: {packages}.
- Conversations, tool dialogues and tools are made by `scripts/demo_model/`; every name in them is invented.

Tokens: {tokens}. The data is not part of the repository.

## Recipe

`scripts/train_demo_model.py` holds all of it.{recipe} {steps:,} steps of {tokens_per_step:,} tokens ({trained_millions:,.0f}
million tokens in all) from documentation, conversations and tool dialogues; AdamW (0.9, 0.95), weight decay 0.1, peak
learning rate {learning_rate}, {warmup} steps of warm-up, cosine decay, gradients clipped at 1, bf16 autocast over fp32
weights. In conversations only the assistant's words are trained. The draft then learned for {draft_minutes:.1f}
minutes from the model's own distribution (sharpened with temperature 0.7).{note}

## Limits

It knows only English, and of the world nothing but Python's library. Arithmetic beyond two-digit sums is guessed. Tools
that it has not seen are called correctly only when the question names their arguments. Long conversations drift. Held-out
modules are unknown to it: asked about them it denies knowing them or invents an answer.{limits}
"""


def update_figures(folder: Path, figures: dict[str, object]) -> None:
    """Merges figures into figures.json."""
    path = folder / FIGURES
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **figures}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_card(folder: Path) -> None:
    """Fills the card from figures.json."""
    figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    data, main = figures["data"], figures["main"]
    by_kind = figures.get("acceptance_by_kind", {})
    spelled = ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items())
    text = CARD.format(
        millions=figures["parameters"]["main"] / 1e6,
        main_parameters=figures["parameters"]["main"],
        draft_parameters=figures["parameters"]["draft"],
        main_megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        draft_megabytes=(folder / "draft" / "model.safetensors").stat().st_size / 1e6,
        minutes=main["minutes"] + figures["draft"]["minutes"],
        table=table(figures.get("judged", {})),
        bits_per_byte=figures["bits_per_byte"],
        trigram_bits_per_byte=data["trigram_bits_per_byte"],
        acceptance=f"{figures['acceptance']:.2f}" if "acceptance" in figures else "not measured",
        acceptance_by_kind=f" By kind of question: {spelled}." if spelled else "",
        megabytes=folder_bytes(folder) / 1e6,
        functions=NUM_FUNCTIONS,
        phrasings=len(JUDGED_PHRASINGS),
        phrasing_list=", ".join(f'"{phrasing}"' for phrasing in JUDGED_PHRASINGS),
        max_tokens=MAX_ANSWER_TOKENS,
        tool_questions=NUM_TOOL_QUESTIONS,
        no_call=NUM_NO_CALL,
        heldout=", ".join(data["heldout_modules"]),
        entries=data["entries"],
        train_megabytes=data["train_bytes"] / 1e6,
        reference=REFERENCE_PACKAGE,
        packages=", ".join(f"{name} ({licence})" for name, licence in FURTHER_PACKAGES.items()),
        tokens=", ".join(f"{name} {count:,}" for name, count in data["tokens"].items()),
        steps=main["steps"],
        tokens_per_step=main["tokens"] // main["steps"],
        trained_millions=main["tokens"] / 1e6,
        learning_rate=main["learning_rate"],
        warmup=main["warmup"],
        hardware=figures["hardware"],
        note=f" {figures['note']}" if figures.get("note") else "",
        limits=f" {figures['limits']}" if figures.get("limits") else "",
        recipe=SMALL_RECIPE if figures["small"] else "",
        draft_minutes=figures["draft"]["minutes"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
