"""The tokenizer's end token by its files alone, against transformers, which loads the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from frontend.eos_token import find_eos_token
from frontend.text.tokenizer_files import TokenizerError

END, OTHER = "<|end|>", "</s>"
WORDS = {"a": 0, "b": 1, OTHER: 2, "<unk>": 3}
MODELS: dict[str, Any] = {
    "bpe": BPE(vocab=WORDS, merges=[], unk_token="<unk>"),
    "unigram": Unigram([("<unk>", 0.0), ("a", -1.0), (OTHER, -2.0), ("b", -3.0)], unk_id=0),
    "words": WordLevel(WORDS, unk_token="<unk>"),
}
FOLDERS: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {"tokenizer_config.json": {"eos_token": END}},
    "an object": {"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": END, "special": True}}},
    "of the vocabulary": {"tokenizer_config.json": {"eos_token": OTHER}},
    "special_tokens_map.json alone": {"special_tokens_map.json": {"eos_token": END}},
    "special_tokens_map.json first": {
        "tokenizer_config.json": {"eos_token": OTHER},
        "special_tokens_map.json": {"eos_token": {"content": END, "lstrip": False}},
    },
    "special_tokens_map.json of other tokens": {
        "tokenizer_config.json": {"eos_token": END},
        "special_tokens_map.json": {"bos_token": OTHER},
    },
    "added_tokens_decoder makes it unread": {
        "tokenizer_config.json": {"eos_token": OTHER, "added_tokens_decoder": {"4": {"content": END}}},
        "special_tokens_map.json": {"eos_token": END},
    },
    "null": {"tokenizer_config.json": {"eos_token": None}},
    "no file": {},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FOLDERS)
def test_what_transformers_finds(name: str, model: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(MODELS[model])
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_text(json.dumps(content))
    wanted = PreTrainedTokenizerFast.from_pretrained(tmp_path).eos_token_id
    assert find_eos_token(str(tmp_path)) == wanted
    assert (wanted is None) == (name in ("null", "no file"))


def test_ids_of_tokens_that_other_files_add(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    assert find_eos_token(str(tmp_path)) is None
    (tmp_path / "added_tokens.json").write_text(json.dumps({END: 9}))
    assert find_eos_token(str(tmp_path)) == 9
    config = {"eos_token": END, "added_tokens_decoder": {"8": {"content": END, "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert find_eos_token(str(tmp_path)) == 8


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"added_tokens": [{"id": "x", "content": "y"}]}'),
        ("tokenizer.json", '{"model": {"vocab": 3}}'),
        ("special_tokens_map.json", "[]"),
        ("added_tokens.json", '{"x": "y"}'),
        ("tokenizer_config.json", '{"eos_token": "x", "added_tokens_decoder": {"a": {"content": "x"}}}'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (tmp_path / file).write_text(content)
    with pytest.raises(TokenizerError, match=file.replace(".", r"\.")) as error:
        find_eos_token(str(tmp_path))
    assert "\n" not in str(error.value)
