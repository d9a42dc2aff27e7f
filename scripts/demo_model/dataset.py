"""Builds the token files: documentation, plain conversations, tool dialogues, held-out text.

A token is a uint16; its top bit says that the model is trained to say it. Every document starts with the bos token. The
files are a few dozen megabytes and can be carried to the machine that trains.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from .catalogue import Entry, build_catalogue
from .chats import Chats
from .collect import FURTHER_PACKAGES, REFERENCE_PACKAGE, download, heldout_modules, split_documents
from .questions import JUDGED_FUNCTIONS, choose_functions
from .render import Dialogue, render
from .tokenizer import BOS, EOS, TOKEN_ID, save_tokenizer, train_tokenizer
from .tool_dialogues import ToolDialogues

TRAINED = 1 << 15
PLAIN_DIALOGUES = 150_000
TOOL_DIALOGUES = 170_000
BATCH = 2_000
SMALL_PLAIN_DIALOGUES = 60_000
SMALL_TOOL_DIALOGUES = 40_000
SMALL_KINDS = (("single", 0.4), ("several", 0.1), ("session", 0.35), ("none", 0.15))


def common_words(documents: Iterable[str], limit: int = 4000) -> list[str]:
    """Frequent lower-case words, to make phrases of."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(re.findall(r"(?<![\w.`:/-])[a-z]{3,10}(?![\w.`:/(=-])", text))
    return sorted(word for word, _ in counts.most_common(limit))


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """One stream of whole documents, all of it trained."""
    streams = []
    for start in tqdm(range(0, len(documents), 64), desc="tokenize"):
        for encoding in tokenizer.encode_batch(list(documents[start : start + 64]), add_special_tokens=False):
            ids = np.array([*encoding.ids, TOKEN_ID[EOS]], dtype=np.uint16) | TRAINED
            streams += [np.array([TOKEN_ID[BOS]], dtype=np.uint16), ids.astype(np.uint16)]
    return np.concatenate(streams)


def encode_dialogues(tokenizer: Tokenizer, count: int, draw: Callable[[], Dialogue], title: str) -> np.ndarray:
    """One stream of drawn dialogues, in which only the assistant's words are trained."""
    streams = []
    for start in tqdm(range(0, count, BATCH), desc=title):
        pieces = [piece for _ in range(min(BATCH, count - start)) for piece in render(draw())]
        encodings = tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
        for (_, trained), encoding in zip(pieces, encodings, strict=True):
            streams.append(np.array(encoding.ids, dtype=np.uint16) | np.uint16(TRAINED if trained else 0))
    return np.concatenate(streams)


def collect(work: Path) -> None:
    """Step one: downloads the packages, writes documents.json and catalogue.json."""
    download([REFERENCE_PACKAGE, *FURTHER_PACKAGES], work / "packages")
    entries = build_catalogue(work / "packages" / REFERENCE_PACKAGE)
    train, heldout = split_documents(work / "packages")
    (work / "catalogue.json").write_text(json.dumps([asdict(e) for e in entries]), encoding="utf-8")
    content = {"train": train, "heldout": heldout, "heldout_modules": heldout_modules()}
    (work / "documents.json").write_text(json.dumps(content), encoding="utf-8")


def prepare(work: Path, model_folder: Path, small: bool = False, scale: float = 1.0, seed: int = 1) -> None:
    """Step two: trains the tokenizer and writes data.npz, facts.json and the judged functions.

    The small form is what a CPU can learn from in half an hour: fewer functions, shorter dialogues.
    """
    content = json.loads((work / "documents.json").read_text(encoding="utf-8"))
    entries = [Entry(**fields) for fields in json.loads((work / "catalogue.json").read_text(encoding="utf-8"))]
    entries = [entry for entry in entries if entry.is_core()] if small else entries
    train, heldout = content["train"], content["heldout"]
    rng = random.Random(seed)
    rng.shuffle(train)
    words = common_words(train)
    chats = Chats(entries, words, 100) if small else Chats(entries, words)
    offers = ToolDialogues(words, chats.dialogue, 1, SMALL_KINDS) if small else ToolDialogues(words, chats.dialogue)

    def plain() -> Dialogue:
        return chats.without_tool(rng) if rng.random() < 0.03 else chats.dialogue(rng)

    def tools() -> Dialogue:
        return offers.dialogue(rng)

    sample = train[: max(20, int(1500 * min(scale, 1.0)))]
    sample += ["".join(text for text, _ in render(draw())) for draw in (plain, tools) for _ in range(3000)]
    tokenizer = train_tokenizer(sample)
    save_tokenizer(tokenizer, model_folder)
    save_tokenizer(tokenizer, model_folder / "draft")
    functions = choose_functions(entries)
    (model_folder / JUDGED_FUNCTIONS).write_text(json.dumps(functions, indent=0) + "\n", encoding="utf-8")
    num_plain, num_tools = (SMALL_PLAIN_DIALOGUES, SMALL_TOOL_DIALOGUES) if small else (PLAIN_DIALOGUES, TOOL_DIALOGUES)
    arrays = {
        "documents": encode_documents(tokenizer, train[: max(20, int(len(train) * scale))]),
        "heldout": encode_documents(tokenizer, heldout),
        "plain": encode_dialogues(tokenizer, int(num_plain * scale), plain, "plain chats"),
        "tools": encode_dialogues(tokenizer, int(num_tools * scale), tools, "tool dialogues"),
    }
    np.savez_compressed(work / "data.npz", **arrays)
    facts = {
        "heldout_bytes": sum(len(text.encode()) for text in heldout),
        "heldout_modules": content["heldout_modules"],
        "train_bytes": sum(len(text.encode()) for text in train),
        "entries": len(entries),
        "tokens": {name: int(array.size) for name, array in arrays.items()},
    }
    bits = trigram_bits(arrays["documents"], arrays["heldout"])
    facts["trigram_bits_per_byte"] = bits / facts["heldout_bytes"]
    (work / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


def counted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(keys, return_counts=True)


def look_up(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> np.ndarray:
    positions = np.minimum(np.searchsorted(table[0], keys), len(table[0]) - 1)
    return np.where(table[0][positions] == keys, table[1][positions], 0)


def trigram_bits(train: np.ndarray, judged: np.ndarray) -> float:
    """Bits that a trigram model over the same tokens (Witten-Bell interpolation) needs for `judged`.

    P(c|ab) = (n(abc) + t(ab) P(c|b)) / (n(ab) + t(ab)), t(ab) = number of different tokens seen after ab.
    """
    size = 8192
    tokens, test = (np.asarray(array & (TRAINED - 1), dtype=np.int64) for array in (train, judged))

    def step(history: np.ndarray, key: np.ndarray, asked_history: np.ndarray, asked: np.ndarray, lower: np.ndarray):
        grams = counted(history * size + key)
        followers = counted(grams[0] // size)
        total, kinds = look_up(counted(history), asked_history), look_up(followers, asked_history)
        found = look_up(grams, asked_history * size + asked)
        return np.where(total > 0, (found + kinds * lower) / np.maximum(total + kinds, 1), lower)

    chance = (np.bincount(tokens, minlength=size)[test] + 1) / (tokens.size + size)
    chance[1:] = step(tokens[:-1], tokens[1:], test[:-1], test[1:], chance[1:])
    pairs, asked_pairs = tokens[:-2] * size + tokens[1:-1], test[:-2] * size + test[1:-1]
    chance[2:] = step(pairs, tokens[2:], asked_pairs, test[2:], chance[2:])
    return float(-np.log2(chance[(judged & TRAINED) > 0]).sum())
