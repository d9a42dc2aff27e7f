"""The `n` best of `best_of` outputs: those whose tokens were the most likely on average."""

from collections.abc import Sequence
from math import fsum

from frontend.output_processor import OutputPiece


def best_outputs(pieces: Sequence[OutputPiece], num_samples: int, num_wanted: int) -> list[OutputPiece]:
    """Of each prompt's `num_samples` outputs the `num_wanted` best, best first. All have log-probabilities."""
    best: list[OutputPiece] = []
    for start in range(0, len(pieces), num_samples):
        ranked = sorted(pieces[start : start + num_samples], key=_mean_logprob, reverse=True)
        best += ranked[:num_wanted]
    return best


def _mean_logprob(piece: OutputPiece) -> float:
    return fsum(token.logprob for token in piece.logprobs) / max(1, len(piece.logprobs))
