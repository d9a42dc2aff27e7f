"""What a client may ask of the sampler, as one closed, checked type: the schema of sampling parameters.

A parameter is said once, in `SamplingParams`: name, type, default and, as a `Field`, its bounds, its column in a row's
record and what a row that uses it needs of the sampler. Range checks, the fields of HTTP requests, records
(`row_fields.py`) and kernels' columns follow from it, and a test compares the tables of the documentation with it.

The names follow the OpenAI API and its usual extensions. This module knows nothing of text: stop *strings* are the
frontend's business, the engine sees token ids only.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

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

MAX_SAMPLE_INDEX = 2**16 - 1
_MAX_TOKENS = "at least 1, or 0 with prompt_logprobs"

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]

INT, UINT, FLOAT = "<i4", "<u4", "<f4"
"""The types of a record's columns. All take 4 bytes."""
_NEEDS = ("random", "filters", "logprobs", "bias", "penalties", "held_back", "allowed", "sequences", "top_n_sigma")
NEEDS = {name: 1 << bit for bit, name in enumerate(_NEEDS)}
"""What a row needs of the sampler, as bits. What changes logits runs in this order."""
RANDOM, FILTERS, LOGPROBS, BIAS, PENALTIES, HELD_BACK, ALLOWED, SEQUENCES, TOP_N_SIGMA = NEEDS.values()
OF_DRAWN_ROWS = FILTERS | TOP_N_SIGMA
"""Those that a greedy row never needs. They look at what grammars' masks have left."""


@dataclass(frozen=True, slots=True)
class Field:
    """What the schema says of a parameter beside its name, type and default."""

    wanted: str = ""
    """The bounds in the words of a refusal; empty: there are none, or `SamplingParams` has a check of its own."""
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    """Whether `low` itself is out of bounds."""
    column: str = ""
    """Type of the column of this name in a row's record; empty: there is none."""
    need: int = 0
    """What a row needs of the sampler where the column has another value than the default."""
    passed_on: bool = True
    """Whether HTTP requests have it under this name and pass it on as it is."""

    def allows(self, value: float | None) -> bool:
        """None is always allowed. A NaN fails every comparison and so is not."""
        return value is None or ((self.low < value if self.above_low else self.low <= value) and value <= self.high)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How one request is sampled and when it ends.

    Raises `ValueError` (inside a decoder: `msgspec.ValidationError`) that names the field when a value is out of range.
    """

    max_tokens: Annotated[int | None, Field(_MAX_TOKENS, 0, passed_on=False)] = None
    """Most tokens to generate; None: as many as the context holds. 0 is for `prompt_logprobs` alone."""
    min_tokens: Annotated[int, Field("from 0 to 2147483647", 0, 2**31 - 1, column=INT)] = 0
    """EOS and stop token ids cannot be sampled before this many tokens were generated."""
    temperature: Annotated[float, Field("from 0 to 100", 0, 100, column=FLOAT)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field("above 0 and at most 1", 0, 1, above_low=True, column=FLOAT, need=FILTERS)] = 1.0
    top_k: Annotated[int, Field("0 (all) or more", 0, 2**31 - 1, column=INT, need=FILTERS)] = 0
    """Keep the k most likely tokens; 0: all of them."""
    min_p: Annotated[float, Field("from 0 to 1", 0, 1, column=FLOAT, need=FILTERS)] = 0.0
    """Keep tokens with at least this share of the most likely token's probability."""
    top_n_sigma: Annotated[float, Field("from 0 to 100", 0, 100, column=FLOAT, need=TOP_N_SIGMA)] = 0.0
    """Keep tokens at most so many standard deviations of the logits below the largest logit; 0: all of them."""
    repetition_penalty: Annotated[float, Field("above 0", 0, 100, above_low=True, column=FLOAT)] = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et al. 2019)."""
    presence_penalty: Annotated[float, Field("from -2 to 2", -2, 2, column=FLOAT)] = 0.0
    frequency_penalty: Annotated[float, Field("from -2 to 2", -2, 2, column=FLOAT)] = 0.0
    logit_bias: Annotated[dict[TokenId, float], Field()] = {}
    seed: Annotated[int | None, Field("a signed 64-bit number", -(2**63), 2**63 - 1)] = None
    sample_index: Annotated[int, Meta(ge=0, le=MAX_SAMPLE_INDEX), Field(column=INT, passed_on=False)] = 0
    """Which of the `n` parallel samples of one prompt this is; enters the key of the random numbers."""
    allowed_token_ids: Annotated[list[TokenId] | None, Field()] = None
    """No other token can be sampled; None: all can."""
    bad_words_token_ids: list[list[TokenId]] = []
    """Sequences that the output must not have: the last token of each cannot be sampled behind the others."""
    thinking_token_budget: Annotated[int | None, Field("0 or more", 0, 2**31 - 1, passed_on=False)] = None
    """After so many tokens of thinking its end is forced: the next tokens are `thinking_end_token_ids`."""
    thinking_start_token_ids: list[TokenId] = []
    """With what an output begins to think; empty: it thinks from its first token on."""
    thinking_end_token_ids: list[TokenId] = []
    stop_token_ids: Annotated[list[TokenId], Field()] = []
    ignore_eos: Annotated[bool, Field()] = False
    logprobs: Annotated[int | None, Field(f"from 0 to {MAX_LOGPROBS}", 0, MAX_LOGPROBS, passed_on=False)] = None
    """None: none; k: the sampled token's log-probability and those of the k most likely tokens."""
    prompt_logprobs: Annotated[int | None, Field(f"from 0 to {MAX_LOGPROBS}", 0, MAX_LOGPROBS, passed_on=False)] = None
    """The same for each token of the prompt but the first, which nothing predicts."""
    grammar: str | None = None
    """What the output must be: llguidance's Lark, or its JSON form {"grammars": [...]}, which has JSON schemas too. The
    end of the grammar ends the request, whatever `ignore_eos` says."""

    def __post_init__(self) -> None:
        for name, field in _BOUNDED:
            value = getattr(self, name)
            _check(name, field.allows(value), field.wanted, value)
        _check("max_tokens", self.max_tokens != 0 or self.prompt_logprobs is not None, _MAX_TOKENS, 0)
        _check(
            "min_tokens",
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            f"at most max_tokens={self.max_tokens}",
            self.min_tokens,
        )
        _check("logit_bias", len(self.logit_bias) <= MAX_LOGIT_BIAS, f"{MAX_LOGIT_BIAS} entries or fewer", "more")
        for bias in self.logit_bias.values():
            _check("logit_bias", math.isfinite(bias) and -100.0 <= bias <= 100.0, "from -100 to 100", bias)
        _check(
            "stop_token_ids", len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS, f"{MAX_STOP_TOKEN_IDS} or fewer", "more"
        )
        self._check_sequences()
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
    """Raises a `ValueError` for a field out of range."""
    if not valid:
        raise ValueError(f"{name} must be {wanted}, not {got}.")


def _fields() -> dict[str, Field]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {
        name: said for name, hint in hints.items() for said in getattr(hint, "__metadata__", ()) if type(said) is Field
    }


FIELDS = _fields()
"""What the schema says of each parameter that it says something of."""
_BOUNDED = [(name, field) for name, field in FIELDS.items() if field.wanted]


def passed_on_types() -> dict[str, Any]:
    """The parameters that HTTP requests have under the same names, each with its plain type."""
    types = get_type_hints(SamplingParams)
    return {name: types[name] for name, field in FIELDS.items() if field.passed_on}
