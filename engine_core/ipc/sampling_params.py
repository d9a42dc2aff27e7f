"""What a client may ask of the sampler, as one closed, checked type.

The names follow the OpenAI API and its usual extensions. This module knows nothing of text: stop *strings* are the
frontend's business, the engine sees token ids only.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_BAD_WORDS = 128
MAX_SEQUENCE_TOKENS = 16
"""Of a bad word, and of what begins or ends thinking."""
MAX_GRAMMAR_CHARS = 2**20

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How one request is sampled and when it ends.

    Raises `ValueError` (inside a decoder: `msgspec.ValidationError`) that names the field when a value is out of range.
    """

    max_tokens: int | None = None
    """Most tokens to generate; None: as many as the context holds."""
    min_tokens: int = 0
    """EOS and stop token ids cannot be sampled before this many tokens were generated."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0: all of them."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the most likely token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[TokenId, float] = {}
    seed: int | None = None
    sample_index: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    """Which of the `n` parallel samples of one prompt this is; enters the key of the random numbers."""
    allowed_token_ids: list[TokenId] | None = None
    """No other token can be sampled; None: all can."""
    bad_words_token_ids: list[list[TokenId]] = []
    """Sequences that the output must not have: the last token of each cannot be sampled behind the others."""
    thinking_token_budget: int | None = None
    """After so many tokens of thinking its end is forced: the next tokens are `thinking_end_token_ids`."""
    thinking_start_token_ids: list[TokenId] = []
    """With what an output begins to think; empty: it thinks from its first token on."""
    thinking_end_token_ids: list[TokenId] = []
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: none; k: the sampled token's log-probability and those of the k most likely tokens."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first, which nothing predicts."""
    grammar: str | None = None
    """What the output must be: llguidance's Lark, or its JSON form {"grammars": [...]}, which has JSON schemas too. The
    end of the grammar ends the request, whatever `ignore_eos` says."""

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1", self.max_tokens)
        _check("min_tokens", self.min_tokens >= 0, "at least 0", self.min_tokens)
        _check(
            "min_tokens",
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            f"at most max_tokens={self.max_tokens}",
            self.min_tokens,
        )
        _check("temperature", 0.0 <= self.temperature <= 100.0, "from 0 to 100", self.temperature)
        _check("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1", self.top_p)
        _check("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "a signed 64-bit number", self.seed)
        _check("top_k", 0 <= self.top_k < 2**31, "0 (all) or more", self.top_k)
        _check("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1", self.min_p)
        _check("repetition_penalty", 0.0 < self.repetition_penalty <= 100.0, "above 0", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, -2.0 <= getattr(self, name) <= 2.0, "from -2 to 2", getattr(self, name))
        _check("logit_bias", len(self.logit_bias) <= MAX_LOGIT_BIAS, f"{MAX_LOGIT_BIAS} entries or fewer", "more")
        for bias in self.logit_bias.values():
            _check("logit_bias", math.isfinite(bias) and -100.0 <= bias <= 100.0, "from -100 to 100", bias)
        _check(
            "stop_token_ids", len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS, f"{MAX_STOP_TOKEN_IDS} or fewer", "more"
        )
        self._check_sequences()
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            _check(name, count is None or 0 <= count <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}", count)

        _check(
            "grammar",
            self.grammar is None or 0 < len(self.grammar) <= MAX_GRAMMAR_CHARS,
            f"1 to {MAX_GRAMMAR_CHARS} characters",
            "none" if not self.grammar else f"{len(self.grammar)} characters",
        )
        _check(
            "min_tokens",
            self.grammar is None or self.min_tokens == 0,
            "0 where a grammar says what the output is",
            self.min_tokens,
        )

    def _check_sequences(self) -> None:
        allowed = self.allowed_token_ids
        if allowed is not None:
            _check("allowed_token_ids", len(allowed) > 0, "at least one id", "none")
            wanted = f"{MAX_ALLOWED_TOKEN_IDS} or fewer"
            _check("allowed_token_ids", len(allowed) <= MAX_ALLOWED_TOKEN_IDS, wanted, len(allowed))
        words = self.bad_words_token_ids
        _check("bad_words_token_ids", len(words) <= MAX_BAD_WORDS, f"{MAX_BAD_WORDS} or fewer", len(words))
        lengths = f"of 1 to {MAX_SEQUENCE_TOKENS} tokens each"
        for word in words:
            _check("bad_words_token_ids", 1 <= len(word) <= MAX_SEQUENCE_TOKENS, lengths, f"of {len(word)}")
        budget, end = self.thinking_token_budget, self.thinking_end_token_ids
        _check("thinking_token_budget", budget is None or 0 <= budget < 2**31, "0 or more", budget)
        for name in ("thinking_start_token_ids", "thinking_end_token_ids"):
            count = len(getattr(self, name))
            _check(name, count <= MAX_SEQUENCE_TOKENS, f"{MAX_SEQUENCE_TOKENS} or fewer", count)
        _check("thinking_end_token_ids", budget is None or len(end) > 0, "given with a budget", "empty")

    @property
    def uses_sequences(self) -> bool:
        """Whether what can be sampled depends on the last tokens of the output."""
        return bool(self.bad_words_token_ids) or self.thinking_token_budget is not None

    @property
    def named_token_ids(self) -> dict[str, Iterable[int]]:
        """The ids of tokens that must be in the vocabulary, by field."""
        return {
            "logit_bias": self.logit_bias,
            "allowed_token_ids": self.allowed_token_ids or (),
            "bad_words_token_ids": itertools.chain.from_iterable(self.bad_words_token_ids),
            "thinking_start_token_ids": self.thinking_start_token_ids,
            "thinking_end_token_ids": self.thinking_end_token_ids,
        }

    @property
    def uses_penalties(self) -> bool:
        """Whether the sampler needs counts of the tokens seen so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check(name: str, valid: bool, wanted: str, got: object) -> None:
    """Raises a `ValueError` for a field out of range; a NaN fails every comparison and so lands here as well."""
    if not valid:
        raise ValueError(f"{name} must be {wanted}, not {got}.")
