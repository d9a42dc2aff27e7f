"""Model folders whose tokenizers are built differently, small enough to be made anew, and texts to try them with."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it?",
    "def join(path, *paths):\n    return os.path.join(path, *paths)  # a comment\n",
    "Grüße aus Köln! Où est l'été? ¿Qué tal? Zażółć gęślą jaźń.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "你好，世界！我能吞下玻璃而不伤身体。 こんにちは世界 안녕하세요 세계",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
    "system user assistant tool\n\n\ttabs and   spaces",
]
_WORDS = " ".join(CORPUS).split()
TEXTS = [
    *CORPUS,
    "",
    " ",
    "a",
    " a",
    "a ",
    "  two  spaces  ",
    "\n",
    "\n\n\n",
    "\t\tindented\n\n    more\r\nwindows\r\n",
    "Hello",
    " Hello",
    "HELLO hello HeLLo",
    "1234567890 3.14159 1,000,000 0xFF",
    "🦊🐕‍🦺👨‍👩‍👧‍👦🏳️‍🌈 emoji 😀😃",
    "e\u0301 \u00e9 \ufb01 \u2460 \uff21 \u212b",
    "\u200b\u200d\ufeff zero width",
    "\x00\x01\x1f control \x7f characters",
    "<s>[INST] Hi [/INST] Hello</s><s>[INST] again [/INST]",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|im_end|>text <|im_end|> text  <|im_end|>  text\n<|im_end|>\n",
    "<s><s></s></s> <pad> <unk> </s>",
    "<think>\nhm\n</think>\n\nTwo. <THINK> <think>x</think>",
    "wordy sword WORDY wordy. <wordy> wordywordy",
    "<|endoftext|><|endoftext|> end <mask> [MASK] [CLS]",
    "<|image|> <|new|><|new|> <|lone|>.",
    "▁ is an underscore ▁▁ of sorts",
    "Ġ and Ċ stand for bytes",
    "�� replacement",
    "x" * 2000,
    "https://example.org/path?query=1&other=%20#part user@example.org",
    '{"name": "f", "arguments": {"a": [1, 2.5, null, true], "b": "\\u00e9"}}',
    "SELECT * FROM t WHERE a <> 'it''s' -- comment\n;",
    "".join(random.Random(7).choice(_WORDS) + random.Random(n).choice(" \n \t") for n in range(8000))[:50_000],
    " ".join(random.Random(n).choice(_WORDS) for n in range(8000))[:50_000],
]


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL))
    return tokenizer


def spaced_bpe() -> Tokenizer:
    """Like a converted sentencepiece model: spaces are ▁, and what is unknown is bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + of_bytes, limit_alphabet=60))
    kept = json.loads(tokenizer.to_str())
    kept["added_tokens"] = [token for token in kept["added_tokens"] if token["content"] not in of_bytes]
    return Tokenizer.from_str(json.dumps(kept))


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    numbers = [(text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=numbers
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>"))
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    _train(tokenizer, trainers.WordLevelTrainer(vocab_size=300, special_tokens=SPECIAL))
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS * 3, trainer)


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


Files = dict[str, Any]
"""Contents by name; what is not text is written as JSON."""
BOS = {"bos_token": "<s>", "eos_token": "</s>"}


def _file(tokenizer: Tokenizer, **changes: Any) -> Files:
    return {"tokenizer.json": {**json.loads(tokenizer.to_str()), **changes}, "tokenizer_config.json": dict(BOS)}


def configured(tokenizer: Tokenizer, model_type: str = "llama", **config: Any) -> Files:
    files = _file(tokenizer)
    files["tokenizer_config.json"] |= config
    files["config.json"] = {"model_type": model_type}
    return files


def _token(content: str, **flags: Any) -> dict[str, Any]:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **base, **flags}


def cut_and_padded() -> Files:
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": 16,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    return _file(_with_bos(byte_level_bpe()), truncation=truncation, padding=padding)


def special_tokens_in_a_map() -> Files:
    files = _file(_with_bos(byte_level_bpe()))
    files["tokenizer_config.json"] = {"bos_token": "<pad>", "additional_special_tokens": ["<|lone|>"]}
    files["special_tokens_map.json"] = {"bos_token": "<s>", "eos_token": _token("</s>", lstrip=True)}
    return files


def older_added_tokens() -> Files:
    files = _file(byte_level_bpe())
    files["added_tokens.json"] = {"<|new|>": 701, "wordy": 700, "<|image|>": 702}
    files["special_tokens_map.json"] = {**BOS, "additional_special_tokens": ["<|image|>"]}
    return files


def flags_in_the_config() -> Files:
    """tokenizer_config.json's flags win over tokenizer.json's."""
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([AddedToken("wordy"), AddedToken("<think>"), AddedToken("</think>")])
    files = _file(tokenizer)
    count = tokenizer.get_vocab_size() - 3
    tokens = [_token(text) for text in SPECIAL] + [
        _token("wordy", single_word=True, special=False, normalized=True),
        _token("<think>", rstrip=True, special=False),
        _token("</think>", lstrip=True, special=False),
        _token("<|new|>", lstrip=True, rstrip=True),
    ]
    tokens[5] |= {"lstrip": True, "rstrip": True}
    numbers = [*range(len(SPECIAL)), *range(count, count + 3), 900]
    files["tokenizer_config.json"]["added_tokens_decoder"] = dict(zip(map(str, numbers), tokens, strict=True))
    # Not read beside an added_tokens_decoder:
    files["special_tokens_map.json"] = {"bos_token": "<pad>"}
    return files


def tokens_of_their_own_names() -> Files:
    files = _file(byte_level_bpe())
    files["tokenizer_config.json"] |= {
        "image_token": "<|image|>",
        "extra_special_tokens": {"new_token": "<|new|>", "lone": "<|lone|>"},
        "mask_token": {"__type": "AddedToken", **_token("<mask>", lstrip=True)},
    }
    return files


def a_name_without_token() -> Files:
    return configured(byte_level_bpe(), extra_special_tokens={"lone": "<|lone|>"})


def split_special_tokens() -> Files:
    return configured(_with_bos(byte_level_bpe()), split_special_tokens=True, clean_up_tokenization_spaces=True)


def template_of_both_ends() -> Files:
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return configured(tokenizer, add_bos_token=False, add_eos_token=False, add_prefix_space=True)


def llama_2() -> Files:
    return configured(_with_bos(spaced_bpe()), tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=True)


def llama_2_legacy() -> Files:
    return configured(_with_bos(spaced_bpe()), tokenizer_class="LlamaTokenizerFast", legacy=True, pad_token="<pad>")


def llama_3() -> Files:
    """Names the class of Llama 2, over bytes."""
    return configured(_with_bos(byte_level_bpe()), tokenizer_class="LlamaTokenizer")


def llama_without_prefix() -> Files:
    return configured(spaced_bpe(), tokenizer_class="LlamaTokenizer", add_prefix_space=False)


def mistral() -> Files:
    return configured(_with_bos(spaced_bpe()), "mistral", tokenizer_class="LlamaTokenizer", legacy=False)


def gemma() -> Files:
    return configured(_with_bos(spaced_bpe()), "gemma3_text")


def qwen() -> Files:
    return configured(byte_level_bpe(), "qwen3", eos_token="<|im_end|>", bos_token=None)


def gpt_2() -> Files:
    return configured(byte_level_bpe(), tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


def gpt_neox() -> Files:
    return configured(_with_bos(byte_level_bpe()), tokenizer_class="GPTNeoXTokenizerFast", add_bos_token=True)


def unknown_class() -> Files:
    return configured(byte_level_bpe(), tokenizer_class="SomebodysTokenizer", pad_token=None)


KINDS: dict[str, Callable[[], Files]] = {
    "WordPiece": lambda: _file(word_piece()) | {"tokenizer_config.json": {"cls_token": "[CLS]", "unk_token": "[UNK]"}},
    "Unigram": lambda: _file(unigram()),
    "word level": lambda: _file(word_level()),
    **{
        make.__name__: make
        for make in (
            cut_and_padded,
            special_tokens_in_a_map,
            older_added_tokens,
            flags_in_the_config,
            tokens_of_their_own_names,
            a_name_without_token,
            split_special_tokens,
            template_of_both_ends,
            llama_2,
            llama_2_legacy,
            llama_3,
            llama_without_prefix,
            mistral,
            gemma,
            qwen,
            gpt_2,
            gpt_neox,
            unknown_class,
        )
    },
}


def write_folder(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
