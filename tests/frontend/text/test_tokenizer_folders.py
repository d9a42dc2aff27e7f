"""Whatever a model folder says of its tokenizer, token ids are those of transformers' AutoTokenizer."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from frontend.text.tokenizer_classes import _GENERIC_NAMES, _REFUSED, GENERIC, PIPELINES
from frontend.text.tokenizer_files import TokenizerError
from frontend.tokenizer import TextTokenizer
from tests.frontend.text.tokenizer_folders import (
    BOS,
    KINDS,
    TEXTS,
    Files,
    byte_level_bpe,
    configured,
    unigram,
    write_folder,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    files = KINDS[kind]()
    theirs = compare(write_folder(tmp_path / "made", files), TEXTS)
    # As transformers writes it, which names things otherwise.
    theirs.save_pretrained(tmp_path / "saved")
    if "config.json" in files:
        write_folder(tmp_path / "saved", {"config.json": files["config.json"]})
    compare(tmp_path / "saved", TEXTS[:-2])


def compare(folder: Path, texts: list[str]) -> PreTrainedTokenizerBase:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer.from_folder(str(folder))
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.tokenizer.get_vocab() == theirs.get_vocab()
    for text in texts:
        for add_special_tokens in (False, True):
            ids = ours.encode(text, add_special_tokens)
            assert ids == theirs(text, add_special_tokens=add_special_tokens).input_ids, text[:80]
        for skip in (False, True):
            wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == wanted
    return theirs


def test_an_id_that_a_template_names_is_there(tmp_path: Path) -> None:
    """Tokens that a folder names and its vocabulary lacks come behind it, in transformers' order."""
    ours = TextTokenizer.from_folder(str(write_folder(tmp_path, KINDS["tokens_of_their_own_names"]())))
    size = byte_level_bpe().get_vocab_size()
    assert [ours.encode(text, False) for text in ("<mask>", "<|image|>", "<|new|>", "<|lone|>")] == [
        [size + number] for number in range(4)
    ]


def files_with(**config: Any) -> Files:
    return {**KINDS["llama_2"](), "tokenizer_config.json": {**BOS, **config}}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"tokenizer.model": "x", "tokenizer_config.json": {}},
            "json is missing .tokenizer.model: not read here.",
        ),
        ({"vocab.json": {}, "merges.txt": ""}, "tokenizer.json is missing .vocab.json: not read here."),
        ({"tokenizer.json": []}, "is not a usable tokenizer: Expected `object`, got `array`"),
        (files_with(tokenizer_class="T5Tokenizer"), "tokenizer_class 'T5Tokenizer' builds a pipeline of its own"),
        (files_with(tokenizer_class="CodeLlamaTokenizerFast"), "GPT2Tokenizer, GPTNeoXTokenizer, GemmaTokenizer"),
        (files_with(auto_map={"AutoTokenizer": ["code.Own", None]}), "auto_map names code for the tokenizer"),
        (files_with(fix_mistral_regex=True), "fix_mistral_regex in .*tokenizer_config.json is not supported"),
        (files_with(fast_tokenizer_files=["tokenizer.4.0.json"]), "fast_tokenizer_files in .* is not supported"),
        (files_with(tokenizer_class=["GPT2Tokenizer"]), "tokenizer_class in .* must be a name, not "),
        (files_with(chat_control_tokens="x"), "chat_control_tokens in .* must be a list of texts, not 'x'"),
        (files_with(extra_special_tokens="x"), "extra_special_tokens in .* must be a list or an object, not 'x'"),
        ({"tokenizer.json": {"model": {}, "added_tokens": [{"content": "x"}]}}, "is not a usable tokenizer: 'id'"),
        (files_with(bos_token=5), "bos_token in .* must be the text of a token .* not 5"),
        (files_with(extra_special_tokens=[{"text": "x"}]), "extra_special_tokens in .* must be the text of a token"),
        (files_with(added_tokens_decoder={"x": {"content": "y"}}), "added_tokens_decoder in .* must have tokens by id"),
        ({**files_with(), "added_tokens.json": {"x": "y"}}, "added_tokens.json must have an id for 'x', not 'y'"),
        ({**files_with(), "special_tokens_map.json": []}, "special_tokens_map.json is not a JSON object"),
        (
            configured(unigram(), tokenizer_class="LlamaTokenizer"),
            "its model is Unigram, but tokenizer_class LlamaTokenizer has BPE",
        ),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(tmp_path: Path, files: Files, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason) as refusal:
        TextTokenizer.from_folder(str(write_folder(tmp_path, files)))
    assert "\n" not in str(refusal.value)


def test_every_class_of_transformers_is_known_or_refused() -> None:
    """A name that is neither would be taken for an unknown one, which means tokenizer.json as it stands."""
    names = {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    names |= {name for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast"))}
    names -= {"AutoTokenizer", "BasicTokenizer", "CharacterTokenizer", "MecabTokenizer", "WordpieceTokenizer"}
    generic = {"TokenizersBackend", "PythonBackend", "MistralCommonBackend"}
    own = {name.removesuffix("Fast") for name in names if tokenizer_class_from_name(name).__name__ not in generic}
    assert own == _REFUSED | PIPELINES.keys()
    assert GENERIC in _GENERIC_NAMES
