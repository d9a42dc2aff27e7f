"""Asks the questions with transformers, and counts how many tokens the draft would have foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .questions import Question, Reply, parse_calls
from .render import render
from .tokenizer import END, EOS, PAD, TOKEN_ID

NUM_DRAFTED = 4
ENDS = (TOKEN_ID[EOS], TOKEN_ID[END])


def accepted_lengths(foreseen: Sequence[bool]) -> list[int]:
    """Tokens that each verification yields: matching drafted ones, at most four, and one of the model's own.

    `foreseen[i]` says that the draft, given what stands before token i, names token i. Under greedy decoding drafted
    tokens are kept as long as they match, so that the draft always continues the true text.
    """
    lengths, position = [], 0
    while position < len(foreseen):
        accepted = 0
        while accepted < NUM_DRAFTED and position + accepted < len(foreseen) and foreseen[position + accepted]:
            accepted += 1
        # The last tokens of an answer can all be drafted ones; then there is no token of the model's own.
        lengths.append(min(accepted + 1, len(foreseen) - position))
        position += lengths[-1]
    return lengths


@torch.no_grad()
def generate(model: LlamaForCausalLM, prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Greedy continuations, the end token included where it came within `limit` tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[TOKEN_ID[PAD]] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=list(ENDS),
        pad_token_id=TOKEN_ID[PAD],
    )  # fmt: skip
    continuations = []
    for row in output[:, longest:].tolist():
        end = next((index for index, token in enumerate(row) if token in ENDS), len(row) - 1)
        continuations.append(row[: end + 1])
    return continuations


@torch.no_grad()
def draft_lengths(draft: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> list[int]:
    """Accepted lengths over one answer; its first token comes with the prompt and is not drafted."""
    ids = torch.tensor([prompt + answer], device=draft.device)
    best = draft(ids[:, :-1]).logits[0, len(prompt) :].argmax(-1).tolist()
    return accepted_lengths([guess == token for guess, token in zip(best, answer[1:], strict=True)])


def ask_transformers(
    folder: Path, questions: Sequence[Question], limits: Sequence[int], device: str, batch_size: int
) -> tuple[list[Reply], dict[str, object]]:
    """Replies in the questions' order, and the acceptance length as a whole and by kind of question."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    draft = LlamaForCausalLM.from_pretrained(folder / "draft", dtype=torch.float32).to(device).eval()
    prompts = []
    for question in questions:
        text = "".join(piece for piece, _ in render(question.dialogue)) + "<|assistant|>\n"
        prompts.append(tokenizer.encode(text, add_special_tokens=False))
    order = sorted(range(len(questions)), key=lambda index: (limits[index], len(prompts[index])))
    replies: list[Reply | None] = [None] * len(questions)
    lengths: dict[str, list[int]] = {}
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for group in tqdm(groups, desc="ask"):
        answers = generate(model, [prompts[index] for index in group], max(limits[index] for index in group))
        for index, answer in zip(group, answers, strict=True):
            answer = answer[: limits[index]]
            ended = answer[-1] in ENDS
            text = tokenizer.decode(answer[:-1] if ended else answer)
            calls, well_formed = parse_calls(text)
            replies[index] = Reply(text, ended, tuple(calls), well_formed)
            lengths.setdefault(questions[index].kind, []).extend(draft_lengths(draft, prompts[index], answer))
    total = [length for group_lengths in lengths.values() for length in group_lengths]
    by_kind = {kind: sum(group) / len(group) for kind, group in lengths.items()}
    return [r for r in replies if r is not None], {"acceptance": sum(total) / len(total), "acceptance_by_kind": by_kind}
