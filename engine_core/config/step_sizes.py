"""The padded sizes for which a step's graph exists: fine where steps are short, coarse where padding costs little.

A graph serves every step that fits into it. Decode steps (one token per sequence) have as many tokens as sequences;
mixed ones always have room for all sequences, because a padded sequence costs next to nothing.
"""

from bisect import bisect_left
from dataclasses import dataclass

_DECODE_STEPS = ((8, 8), (256, 8), (512, 16), (8192, 64))
_SHARED_STEPS = ((512, 32), (8192, 128))
_MIXED_STEPS = ((64, 32), (512, 64), (1024, 128), (2048, 64), (4096, 256), (16384, 512), (2**20, 2048))
"""Up to that many, sizes lie that far apart."""
_BESIDE = tuple((size + 32) for size in (512, 1024, 2048, 4096))
"""A prompt or chunk of a common length beside a few sequences that decode should cost little more than alone. Padded to
1,280, a step of 1,034 tokens of an 8B model took 24 % longer than one of 1,024."""

MIN_SPARED_KEYS = 2**15
"""Reads of a key and its value, over all rows, that take longer than the launch that spares them."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """Tokens and sequences of a padded step."""

    num_tokens: int
    num_seqs: int
    is_decode: bool
    """One token per sequence: only the short variant of attention runs, and the graph goes on to the logits."""
    is_shared: bool = False
    """Such a step whose rows begin with the same blocks, which attention reads once for all. Mixed ones always can."""


class StepSizes:
    """All sizes of one worker."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int, shares_beginnings: bool = False) -> None:
        """`shares_beginnings`: there are sizes for steps whose rows begin with the same blocks."""
        self._max_num_seqs = max_num_seqs
        most = min(max_num_seqs, max_num_batched_tokens)
        self._decode = sorted({1, 2, 4, *_multiples(_DECODE_STEPS, most)} & set(range(1, most + 1)))
        self._shared = _multiples(_SHARED_STEPS, most) if shares_beginnings else []
        beside = {size for size in _BESIDE if size < max_num_batched_tokens}
        self._mixed = sorted(beside | set(_multiples(_MIXED_STEPS, max_num_batched_tokens)))

    def all(self) -> list[StepSize]:
        """The largest first: captured in this order, smaller graphs find their memory in the larger ones'."""
        mixed = [StepSize(size, self._max_num_seqs, False) for size in reversed(self._mixed)]
        shared = [StepSize(size, size, True, True) for size in reversed(self._shared)]
        return mixed + shared + [StepSize(size, size, True) for size in reversed(self._decode)]

    def shares(self, num_tokens: int, num_seqs: int, num_shared_keys: int) -> bool:
        """Whether a step's common beginning is worth one more launch in each layer."""
        is_decode = num_tokens == num_seqs and bool(self._shared)
        return is_decode and (num_seqs - 1) * num_shared_keys >= MIN_SPARED_KEYS

    def fit(self, num_tokens: int, num_seqs: int, is_shared: bool = False) -> StepSize:
        """The smallest size that holds a step."""
        if is_shared:
            size = self._shared[bisect_left(self._shared, num_seqs)]
            return StepSize(size, size, True, True)
        if num_tokens == num_seqs:
            size = self._decode[bisect_left(self._decode, num_seqs)]
            return StepSize(size, size, True)
        return self.fit_mixed(num_tokens)

    def fit_mixed(self, num_tokens: int) -> StepSize:
        """The smallest size that holds a step of any number of sequences."""
        return StepSize(self._mixed[bisect_left(self._mixed, num_tokens)], self._max_num_seqs, False)


def _multiples(steps: tuple[tuple[int, int], ...], most: int) -> list[int]:
    """Multiples of each step up to its bound, up to and including `most`."""
    sizes = []
    size = 0
    for bound, step in steps:
        while size < min(bound, most):
            size = min((size // step + 1) * step, most)
            sizes.append(size)
    return sizes
