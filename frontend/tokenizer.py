"""Text to token ids and back, by the `tokenizers` library alone: nothing here loads torch or transformers."""

import os
from functools import lru_cache
from typing import Any

import msgspec
from tokenizers import Tokenizer


class TokenizerError(ValueError):
    """A model folder has no usable tokenizer."""


class _TokenizerFile(msgspec.Struct):
    """Of tokenizer.json the part that says how tokens stand for bytes."""

    decoder: Any = None


class TextTokenizer:
    """The tokenizer of one model folder."""

    def __init__(self, tokenizer: Tokenizer, decoder: Any, special_tokens: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        self.special_tokens = special_tokens
        """What chat templates may use: `bos_token`, `eos_token` and others, by name."""
        decoder_types = _decoder_types(decoder)
        self._is_byte_level = "ByteLevel" in decoder_types
        self._has_byte_fallback = "ByteFallback" in decoder_types
        self._word_separator = "▁" if decoder_types & {"Metaspace", "Replace"} else None
        self.added_tokens = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        """Those beside the vocabulary's own, special or not, by id."""
        self.special_token_ids = frozenset(
            number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        # A token's bytes are asked for again and again where log-probabilities are, so they are kept.
        self.token_bytes = lru_cache(maxsize=65536)(self._find_token_bytes)
        self.token_text = lru_cache(maxsize=65536)(self._find_token_text)

    @classmethod
    def from_folder(cls, folder: str) -> "TextTokenizer":
        """Raises `TokenizerError` with one sentence."""
        path = os.path.join(folder, "tokenizer.json")
        try:
            with open(path, "rb") as file:
                data = file.read()
            tokenizer = Tokenizer.from_buffer(data)
            decoder = msgspec.json.decode(data, type=_TokenizerFile).decoder
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise TokenizerError(f"{path} is not a usable tokenizer: {str(error).rstrip('.')}.") from error
        return cls(tokenizer, decoder, _special_tokens(load_tokenizer_config(folder)))

    def special_ids_of(self, texts: frozenset[str]) -> frozenset[int]:
        """The special tokens that are written so."""
        return frozenset(number for number in self.special_token_ids if self.added_tokens[number] in texts)

    def grammar_token_id(self, text: str) -> int | None:
        """Of the token that is written so and that a grammar has to name by its number, because it is no text there:
        special ones, and for llguidance all added ones in angle brackets. None: there is none."""
        token_id: int | None = self.tokenizer.token_to_id(text)
        if token_id not in self.added_tokens:
            return None
        in_brackets = text.startswith("<") and text.endswith(">")
        return token_id if in_brackets or token_id in self.special_token_ids else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def _find_token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; empty for an id that the tokenizer does not have."""
        added = self.added_tokens.get(token_id)
        if added is not None:
            return added.encode()
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            byte_of = _byte_level_alphabet()
            if all(character in byte_of for character in token):
                return bytes(byte_of[character] for character in token)
        if self._has_byte_fallback and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        if self._word_separator is not None:
            return token.replace(self._word_separator, " ").encode()
        return self.decode([token_id], skip_special_tokens=False).encode()

    def _find_token_text(self, token_id: int) -> str:
        """A token as text. A piece of a character is written as its bytes, the way OpenAI does."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def load_tokenizer_config(folder: str) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where a folder has none."""
    path = os.path.join(folder, "tokenizer_config.json")
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


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    tokens = {}
    for name in names:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _decoder_types(decoder: Any) -> set[str]:
    """The types named in tokenizer.json's decoder, which may be a sequence of decoders."""
    if not isinstance(decoder, dict):
        return set()
    types = {str(decoder.get("type"))}
    for inner in decoder.get("decoders") or ():
        types |= _decoder_types(inner)
    return types


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable character: itself, or one from U+0100 on for the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update((chr(256 + number), byte) for number, byte in enumerate(others))
    return alphabet
