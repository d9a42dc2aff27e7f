"""The token that ends an answer by the files of a tokenizer, for the start: no tokenizer is loaded for it."""

import os
from typing import Any, TypeVar

import msgspec

from frontend.text.tokenizer_files import TokenizerError, load_tokenizer_config

T = TypeVar("T")


class _Content(msgspec.Struct):
    content: str


class _AddedToken(_Content):
    id: int


class _AddedTokens(msgspec.Struct):
    """Of tokenizer.json the part that is decoded at first: the rest can be tens of megabytes."""

    added_tokens: list[_AddedToken] = []


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _VocabularyFile(msgspec.Struct):
    model: _Vocabulary


def find_eos_token(folder: str) -> int | None:
    """The id of the tokenizer's `eos_token`; None where it names none, or one that no file gives an id.

    Raises `TokenizerError` with one sentence for a file that cannot be used.
    """
    config = load_tokenizer_config(folder)
    text = _eos_text(folder, config)
    if text is None:
        return None
    ids = _added_token_ids(folder, config)
    return ids[text] if text in ids else _vocabulary_id(folder, text)


def _eos_text(folder: str, config: dict[str, Any]) -> str | None:
    """As in transformers special_tokens_map.json goes first, but only where tokenizer_config.json is of the old kind,
    without `added_tokens_decoder`."""
    value = config.get("eos_token")
    if "added_tokens_decoder" not in config:
        value = (_decode(folder, "special_tokens_map.json", dict[str, Any]) or {}).get("eos_token", value)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _added_token_ids(folder: str, config: dict[str, Any]) -> dict[str, int]:
    """Of all files that add tokens to the vocabulary; tokenizer.json's own ids win."""
    ids = _decode(folder, "added_tokens.json", dict[str, int]) or {}
    try:
        decoder = msgspec.convert(config.get("added_tokens_decoder") or {}, dict[int, _Content], strict=False)
    except msgspec.ValidationError as error:
        raise TokenizerError(f"{folder}/tokenizer_config.json: added_tokens_decoder: {error}.") from error
    ids |= {token.content: number for number, token in decoder.items()}
    added = _decode(folder, "tokenizer.json", _AddedTokens) or _AddedTokens()
    return ids | {token.content: token.id for token in added.added_tokens}


def _vocabulary_id(folder: str, text: str) -> int | None:
    file = _decode(folder, "tokenizer.json", _VocabularyFile)
    vocab = {} if file is None else file.model.vocab
    if isinstance(vocab, list):
        return next((number for number, (piece, _) in enumerate(vocab) if piece == text), None)
    return vocab.get(text)


def _decode(folder: str, name: str, kind: type[T]) -> T | None:
    """A JSON file of the folder; None where there is none."""
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not usable: {str(error).rstrip('.')}.") from error
