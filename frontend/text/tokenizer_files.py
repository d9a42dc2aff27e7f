"""A model folder's tokenizer, as transformers' AutoTokenizer reads it, by the `tokenizers` library alone.

Read are tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json, and config.json for the
type of the model. What would change token ids and is not understood is refused.
"""

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from frontend.text.tokenizer_classes import PIPELINES, Pipeline, UnknownTokenizerClass, class_of

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNNAMED, _UNNAMED_BEFORE = "extra_special_tokens", "additional_special_tokens"
"""Special tokens without a name, or with names of the model's own; and what that was called before."""
_SAVED_NAMES = "model_specific_special_tokens"
"""What transformers 5 writes for tokens with names of the model's own."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OTHER_FORMATS = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "tiktoken.model")


class TokenizerError(ValueError):
    """A model folder has no usable tokenizer or chat template. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """What a folder's files say of its tokenizer."""

    tokenizer: Tokenizer
    decoder: Any
    """tokenizer.json's description of how tokens become text, or that of the class."""
    special_tokens: dict[str, str]
    """What chat templates may use: `bos_token`, `eos_token` and others, by name."""
    control_tokens: frozenset[str] | None
    """Those that the folder lists as control tokens beside the special ones. None: it has no list."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What a folder adds to the vocabulary."""

    named: dict[str, AddedToken]
    """Special tokens that a template may name."""
    unnamed: list[AddedToken]
    """Other special tokens."""
    added: list[AddedToken]
    """Those with an id of their own, in that order."""


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: msgspec.Raw = msgspec.Raw(b"{}")
    merges: msgspec.Raw = msgspec.Raw(b"[]")


class _TokenizerFile(msgspec.Struct):
    """tokenizer.json; what is only handed on is left as it is."""

    model: _Model
    added_tokens: list[dict[str, Any]] = []
    padding: dict[str, Any] | None = None
    post_processor: msgspec.Raw = msgspec.Raw(b"null")
    decoder: Any = None


def load_tokenizer(folder: str) -> LoadedTokenizer:
    """Raises `TokenizerError` with one sentence."""
    path = os.path.join(folder, "tokenizer.json")
    config = load_tokenizer_config(folder)
    for name in ("fast_tokenizer_files", "fix_mistral_regex"):
        if config.get(name) not in (None, False, [], ["tokenizer.json"]):
            where = os.path.join(folder, "tokenizer_config.json")
            raise TokenizerError(f"{name} in {where} is not supported: it asks for another tokenizer than {path}.")
    data = _read_tokenizer_file(folder, path)
    try:
        file = msgspec.json.decode(data, type=_TokenizerFile)
        class_name = _class_name(folder, config, is_byte_level=b'"ByteLevel"' in data)
        pipeline = PIPELINES.get(class_name)
        tokens = _tokens_of(folder, config, file, pipeline)
        if pipeline is not None:
            data, file.decoder = _rebuilt(file, config, pipeline, tokens.named.get("unk_token"), class_name)
        tokenizer = Tokenizer.from_buffer(data)
    except TokenizerError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        message = str(error).rstrip(".").replace("\n", " ")
        raise TokenizerError(f"{path} is not a usable tokenizer: {message}.") from error
    # These say how its author fed training; nobody's prompt is meant to be cut or filled up by them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_tokens(tokenizer, tokens)
    if pipeline is not None and pipeline.adds_special_tokens_last:
        texts = dict.fromkeys(token.content for token in (*tokens.named.values(), *tokens.unnamed))
        tokenizer.add_tokens([AddedToken(text, special=True) for text in texts])
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    control_tokens = _texts(config.get("chat_control_tokens"), f"chat_control_tokens in {folder}/tokenizer_config.json")
    return LoadedTokenizer(
        tokenizer=tokenizer,
        decoder=file.decoder,
        special_tokens={name: token.content for name, token in tokens.named.items()},
        control_tokens=control_tokens,
    )


def load_tokenizer_config(folder: str) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where a folder has none."""
    return load_object(os.path.join(folder, "tokenizer_config.json"))


def load_object(path: str) -> dict[str, Any]:
    """A file's JSON object, or nothing where there is no such file. Raises `TokenizerError` with one sentence."""
    try:
        with open(path, "rb") as file:
            config = msgspec.json.decode(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {str(error).rstrip('.')}.") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} is not a JSON object.")
    return config


def _read_tokenizer_file(folder: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        others = [name for name in _OTHER_FORMATS if os.path.exists(os.path.join(folder, name))]
        found = f" ({', '.join(others)}: not read here)" if others else ""
        raise TokenizerError(
            f"{path} is missing{found}; transformers writes it: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        ) from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error


def _class_name(folder: str, config: dict[str, Any], *, is_byte_level: bool) -> str:
    model = load_object(os.path.join(folder, "config.json"))
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    if not isinstance(declared, str | None):
        raise TokenizerError(f"tokenizer_class in {folder} must be a name, not {declared!r:.64}.")
    auto_map = config.get("auto_map")
    has_code = bool(auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map)
    try:
        return class_of(model.get("model_type"), declared, is_byte_level=is_byte_level, has_code=has_code)
    except UnknownTokenizerClass as error:
        raise TokenizerError(f"{os.path.join(folder, 'tokenizer_config.json')}: {error}") from error


def _rebuilt(
    file: _TokenizerFile, config: dict[str, Any], pipeline: Pipeline, unknown: AddedToken | None, class_name: str
) -> tuple[bytes, Any]:
    """tokenizer.json with the pipeline of its class, and that class's decoder."""
    if file.model.type not in (None, "BPE"):
        raise ValueError(f"its model is {file.model.type}, but tokenizer_class {class_name} has BPE")
    parts = pipeline.parts(config)
    unk_token = unknown.content if pipeline.has_unk and unknown is not None else None
    model = {**pipeline.model, "unk_token": unk_token, "vocab": file.model.vocab, "merges": file.model.merges}
    post_processor = pipeline.post_processor or file.post_processor
    whole = {"version": "1.0", "added_tokens": [], "model": model, "post_processor": post_processor, **parts}
    return msgspec.json.encode(whole), parts["decoder"]


def _tokens_of(folder: str, config: dict[str, Any], file: _TokenizerFile, pipeline: Pipeline | None) -> _Tokens:
    where = os.path.join(folder, "tokenizer_config.json")
    values: dict[str, Any] = {"pad_token": file.padding["pad_token"]} if file.padding is not None else {}
    values |= pipeline.special_tokens if pipeline is not None else {}
    values |= config
    if not values.get(_UNNAMED):
        values[_UNNAMED] = values.pop(_UNNAMED_BEFORE, None)
    if "added_tokens_decoder" not in config:
        values |= _special_tokens_map(folder, values)
    unnamed = values.get(_UNNAMED)
    if not isinstance(unnamed, list | dict | None):
        raise TokenizerError(f"{_UNNAMED} in {where} must be a list or an object, not {unnamed!r:.64}.")
    others = {name: values[name] for name in values if name.endswith("_token") and not isinstance(values[name], bool)}
    # Tokens without an id get theirs in this order: objects before texts among the others.
    own_names = [name for name in others if name not in _NAMED]
    order = [*_NAMED, *sorted(own_names, key=lambda name: isinstance(others[name], str))]
    named_values = {name: others[name] for name in order if others.get(name) is not None}
    if isinstance(unnamed, dict):
        named_values |= unnamed
        unnamed = None
    elif not any(isinstance(others[name], str) for name in own_names):
        named_values |= values.get(_SAVED_NAMES) or {}
    named = {name: _token(value, f"{name} in {where}", special=True) for name, value in named_values.items()}
    listed = [_token(value, f"{_UNNAMED} in {where}", special=True) for value in unnamed or ()]
    if "added_tokens_decoder" in config:
        added = _numbered(config["added_tokens_decoder"], f"added_tokens_decoder in {where}")
    else:
        names = {token.content for token in (*(named[name] for name in _NAMED if name in named), *listed)}
        added = _older_added_tokens(folder, names)
        added |= {int(token["id"]): _token(token, "added_tokens") for token in file.added_tokens}
    if not unnamed:  # only special_tokens_map.json can still have the older name
        listed += [_token(value, f"{_UNNAMED_BEFORE} in {where}") for value in values.get(_UNNAMED_BEFORE) or ()]
    by_text = {token.content: token for token in added.values()}
    named |= {name: by_text.get(token.content, token) for name, token in named.items() if name in _NAMED}
    return _Tokens(named, listed, [added[number] for number in sorted(added)])


def _special_tokens_map(folder: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What special_tokens_map.json sets, which wins over tokenizer_config.json. Lists are put together."""
    found = load_object(os.path.join(folder, "special_tokens_map.json"))
    before, more = config.get(_UNNAMED), found.get(_UNNAMED)
    if isinstance(before, list) and isinstance(more, list):
        found[_UNNAMED] = [*before, *(token for token in more if token not in before)]
    elif isinstance(before, dict) and isinstance(more, dict):
        found[_UNNAMED] = {**before, **more}
    return found


def _older_added_tokens(folder: str, special: Set[str]) -> dict[int, AddedToken]:
    """added_tokens.json, which knows no flags. `special`: the texts of special tokens."""
    path = os.path.join(folder, "added_tokens.json")
    found = {}
    for text, number in load_object(path).items():
        if not isinstance(number, int):
            raise TokenizerError(f"{path} must have an id for {text!r}, not {number!r}.")
        found[number] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _numbered(tokens: Any, where: str) -> dict[int, AddedToken]:
    if not isinstance(tokens, dict) or not all(number.isdecimal() for number in tokens):
        raise TokenizerError(f"{where} must have tokens by id.")
    return {int(number): _token(token, where) for number, token in tokens.items()}


def _add_tokens(tokenizer: Tokenizer, tokens: _Tokens) -> None:
    """Adds what the vocabulary lacks and gives all of them their flags. Those without an id of their own come last."""
    known = {token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *tokens.added)}
    more: dict[str, AddedToken] = {}
    for token in (*tokens.named.values(), *tokens.unnamed):
        if token.content not in known:
            more.setdefault(token.content, token)
    names = {token.content for token in tokens.named.values()}
    new = [*tokens.added, *more.values()]
    for token in new:
        token.special = token.special or token.content in names
    tokenizer.add_tokens(new)


def _texts(values: Any, where: str) -> frozenset[str] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TokenizerError(f"{where} must be a list of texts, not {values!r:.64}.")
    return frozenset(values)


def _token(value: Any, where: str, **defaults: bool) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, **defaults)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"{where} must be the text of a token or an object with its content, not {value!r:.64}.")
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    return AddedToken(value["content"], **{**defaults, **flags})
