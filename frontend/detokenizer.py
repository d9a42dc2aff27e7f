"""Token ids to text, one at a time, never splitting a character."""

import codecs
from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from frontend.tokenizer import TextTokenizer

_PRIMING_TOKENS = 5
"""A decoder may treat the first token of a text differently (drop its space): it sees the end of the prompt first."""

_MAX_HELD_TOKENS = 64
"""No text has so many tokens in a row that all end within a character; what does is not text, and is let go."""


class Detokenizer:
    """The text of one output as it grows. A piece of a character waits until the rest of it is there."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool,
        markers: frozenset[str] = frozenset(),
    ) -> None:
        """`markers`: special tokens that are text all the same, because a parser looks for them."""
        visible = tokenizer.special_ids_of(markers) if skip_special_tokens and markers else frozenset()
        self.left_out = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        """Tokens that are no part of the text."""
        if visible:
            # The library leaves out all of them or none.
            skip_special_tokens = False
            self.left_out -= visible
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._held: list[int] = []
        tail = list(prompt_token_ids[-_PRIMING_TOKENS:])
        if tokenizer.decode(tail, skip_special_tokens).endswith("�"):
            # The prompt ends within a character: what completes it would come out together with the prompt's text.
            tail = []
        self._stream = DecodeStream(ids=tail, skip_special_tokens=skip_special_tokens)

    def step(self, token_id: int) -> str:
        """The text that this token completes, often its own, sometimes none yet."""
        if token_id in self.left_out:
            return ""
        self._held.append(token_id)
        try:
            text: str | None = self._stream.step(self._tokenizer.tokenizer, token_id)
        except Exception as error:  # the library's own type for this is `Exception` itself; all others go on
            if type(error) is not Exception or not str(error).startswith("Invalid prefix"):
                raise
            return self._start_again()
        if text is not None:
            self._held.clear()
            return text
        if len(self._held) >= _MAX_HELD_TOKENS:
            return self._start_again()
        return ""

    def flush(self) -> str:
        """At the end of an output: what was held, without the piece of a character that may end it."""
        data = b"".join([self._tokenizer.token_bytes(token_id) for token_id in self._held])
        self._held.clear()
        return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final=False)

    def _start_again(self) -> str:
        """After a text that changed what stood before it the library's stream is of no more use."""
        text = self.flush()
        self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
        return text
