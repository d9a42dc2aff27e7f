"""Text to token ids and back, by the `tokenizers` library alone: nothing here loads torch or transformers."""

from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from frontend.text.control_tokens import END, START, ControlTokens, encode_marked
from frontend.text.tokenizer_files import load_tokenizer


class TextTokenizer:
    """The tokenizer of one model folder."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoder: Any,
        special_tokens: dict[str, str],
        control_tokens: ControlTokens | None = None,
    ) -> None:
        """`control_tokens`: those that `encode` takes for text where they are marked. None: nothing is marked."""
        self.tokenizer = tokenizer
        self.control_tokens = control_tokens
        self._marked = None if control_tokens is None else control_tokens.marked()
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
        self.num_tokens: int = tokenizer.get_vocab_size()
        """Of the vocabulary with what is added to it. It may be more than the model has embeddings for."""
        # A token's bytes are asked for again and again where log-probabilities are, so they are kept.
        self.token_bytes = lru_cache(maxsize=65536)(self._find_token_bytes)
        self.token_text = lru_cache(maxsize=65536)(self._find_token_text)
        self.special_tokens_within = lru_cache(maxsize=256)(self._find_special_tokens_within)

    @classmethod
    def from_folder(cls, folder: str, *, sanitize_control_tokens: bool = False) -> "TextTokenizer":
        """Raises `TokenizerError` with one sentence."""
        loaded = load_tokenizer(folder)
        if not sanitize_control_tokens:
            return cls(loaded.tokenizer, loaded.decoder, loaded.special_tokens)
        added = loaded.tokenizer.get_added_tokens_decoder().values()
        special = frozenset(token.content for token in added if token.special)
        others = frozenset(token.content for token in added) - special
        control_tokens = ControlTokens(special, others, loaded.control_tokens)
        return cls(loaded.tokenizer, loaded.decoder, loaded.special_tokens, control_tokens)

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
        """A text's tokens. Raises a 400 for a marked control token that has no other form."""
        if self._marked is not None and (START in text or END in text):
            return encode_marked(self.tokenizer, self._marked.split(text), add_special_tokens)
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

    def _find_special_tokens_within(self, texts: tuple[str, ...]) -> dict[int, str]:
        """The special tokens that one of these texts has, by id."""
        special = {number: self.added_tokens[number] for number in self.special_token_ids}
        return {number: token for number, token in special.items() if token and any(token in text for text in texts)}

    def _find_token_text(self, token_id: int) -> str:
        """A token as text. A piece of a character is written as its bytes, the way OpenAI does."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


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
