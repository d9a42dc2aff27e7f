"""Tokenizer classes that transformers names, and the pipelines that some of them build themselves.

Most classes run tokenizer.json as it stands. A few take only vocabulary, merges and post-processor from it and bring
their own normalizer, pre-tokenizer and decoder: `PIPELINES` has those of the models that are served here. Which class
a folder means: transformers' AutoTokenizer (5.23), for the model types that are served.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

GENERIC = "TokenizersBackend"
"""Runs tokenizer.json as it stands."""
_GENERIC_NAMES = frozenset(
    (GENERIC, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "PythonBackend", "BloomTokenizer")
)
_OF_MODEL_TYPE = {
    "qwen3": "Qwen2Tokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
"""Where a folder names no class."""
_REFUSED_NAMES = """
Albert Barthez Bartpho Bart Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall ByT5
CLIP CTRL Camembert Canine Clvp CodeGen CodeLlama Cohere ConvBert Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder
DPRReader Deberta DebertaV2 Dia DistilBert Esm Esmc FNet FSMT FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese
GPTSw3 Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM
Mgpstr MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Parakeet Pegasus Perceiver Phobert Pop2Piano ProphetNet
Qwen3_5 Rag Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter
SqueezeBert T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLM XLMRoberta XLNet
"""
_REFUSED = frozenset(f"{name}Tokenizer" for name in _REFUSED_NAMES.split())
"""Classes of transformers that build a pipeline which is not known here."""


class UnknownTokenizerClass(ValueError):
    """A folder means a class that is not understood."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a class brings itself. `parts` makes it from tokenizer_config.json, in the terms of tokenizer.json."""

    parts: Callable[[Mapping[str, Any]], Json]
    special_tokens: Mapping[str, str | None]
    """By name; those that tokenizer_config.json gives win."""
    fuse_unk: bool = False
    byte_fallback: bool = False
    has_unk: bool = False
    """Whether the model falls back to the unknown token."""
    affixes: str | None = ""
    post_processor: Json | None = None
    """In place of the file's."""
    adds_special_tokens_last: bool = False
    """Whether its special tokens become special ones again at the end, whatever the folder says of them."""
    model: Json = field(init=False)

    def __post_init__(self) -> None:
        model = {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": self.affixes,
            "end_of_word_suffix": self.affixes,
            "fuse_unk": self.fuse_unk,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": False,
        }
        object.__setattr__(self, "model", model)


def class_of(model_type: str | None, declared: str | None, *, is_byte_level: bool, has_code: bool) -> str:
    """The class that transformers would take. `declared`: by tokenizer_config.json, else config.json. `has_code`: the
    folder names code of its own for the tokenizer. Raises `UnknownTokenizerClass` with a sentence."""
    if model_type == "mistral":
        return GENERIC
    registered = _OF_MODEL_TYPE.get(model_type or "")
    name = (declared or registered or "").removesuffix("Fast")
    if name in _GENERIC_NAMES or (name == "LlamaTokenizer" and is_byte_level):
        return GENERIC
    if name in PIPELINES:
        return name
    if name in _REFUSED:
        known = ", ".join(sorted(PIPELINES))
        raise UnknownTokenizerClass(
            f"tokenizer_class {declared!r} builds a pipeline of its own that is not supported; {known} and "
            f"'PreTrainedTokenizerFast', which runs tokenizer.json as it stands, are."
        )
    if has_code and registered is None:
        raise UnknownTokenizerClass(
            "auto_map names code for the tokenizer, and no code of a model is run here; without auto_map "
            "tokenizer.json is taken as it stands."
        )
    return GENERIC


def _llama(config: Mapping[str, Any]) -> Json:
    has_prefix = config.get("add_prefix_space") is not False
    # `legacy` is false unless the folder says otherwise, and then only a text's beginning gets a space.
    scheme = ("always" if config.get("legacy", False) else "first") if has_prefix else "never"
    decoders: list[Json] = [_SPACES_BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _gemma(config: Mapping[str, Any]) -> Json:
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": [_SPACES_BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }


def _qwen2(config: Mapping[str, Any]) -> Json:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _byte_level(config, use_regex=False)]},
        "decoder": _BYTES_BACK,
    }


def _gpt2(config: Mapping[str, Any]) -> Json:
    return {"normalizer": None, "pre_tokenizer": _byte_level(config, use_regex=True), "decoder": _BYTES_BACK}


def _gpt_neox(config: Mapping[str, Any]) -> Json:
    return {**_gpt2(config), "normalizer": {"type": "NFC"}}


def _byte_level(config: Mapping[str, Any], *, use_regex: bool) -> Json:
    has_prefix = bool(config.get("add_prefix_space"))
    return {"type": "ByteLevel", "add_prefix_space": has_prefix, "trim_offsets": True, "use_regex": use_regex}


_SPACES_BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_BYTES_BACK = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_ENDOFTEXT = "<|endoftext|>"
_NO_SPECIAL_TOKENS = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}

PIPELINES: dict[str, Pipeline] = {
    "LlamaTokenizer": Pipeline(
        _llama,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        fuse_unk=True,
        byte_fallback=True,
        affixes=None,
    ),
    "GemmaTokenizer": Pipeline(
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        fuse_unk=True,
        byte_fallback=True,
        has_unk=True,
        affixes=None,
    ),
    "Qwen2Tokenizer": Pipeline(
        _qwen2,
        {"unk_token": _ENDOFTEXT, "bos_token": None, "eos_token": _ENDOFTEXT, "pad_token": _ENDOFTEXT},
        adds_special_tokens_last=True,
    ),
    "GPT2Tokenizer": Pipeline(
        _gpt2, {"unk_token": _ENDOFTEXT, "bos_token": _ENDOFTEXT, "eos_token": _ENDOFTEXT, "pad_token": None}
    ),
    "GPTNeoXTokenizer": Pipeline(
        _gpt_neox,
        {
            "unk_token": _ENDOFTEXT,
            "bos_token": _ENDOFTEXT,
            "eos_token": _ENDOFTEXT,
            "pad_token": "<|padding|>",
        },
        post_processor=_NO_SPECIAL_TOKENS,
    ),
}
