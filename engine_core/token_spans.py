"""What a collected step adds to its rows: none to K + 1 tokens each, up to the one that ends the request.

A plan counts on the most tokens that a row can yield. Where the row yields fewer, what was planned for the others is
taken back: steps in flight begin where the row really stands.
"""

from typing import NamedTuple

import numpy as np

from engine_core.ipc.step import StepResult, of_tokens
from engine_core.row_table import RowTable
from engine_core.step_records import ScheduledStep


class TokenSpans(NamedTuple):
    """The new tokens that count, one row after the other. Arrays of rows are [num_rows]."""

    indices: np.ndarray
    """Where in the step's order each row stands."""
    rows: np.ndarray
    counts: np.ndarray
    """New tokens of each row, at least 1."""
    token_ids: np.ndarray  # [num_tokens]
    known_before: np.ndarray
    """Tokens of each row before the new ones."""
    stops: np.ndarray
    """Whether the row's last token is one that it stops at."""
    skipped_rows: np.ndarray
    """Rows without a token, because their mask was late."""


def collect(table: RowTable, step: ScheduledStep, result: StepResult, eos_token_ids: tuple[int, ...]) -> TokenSpans:
    """Appends the tokens of a result to the rows. Those for ended requests are dropped."""
    expected = np.where(step.generation == table.generation[step.rows], step.num_expected, 0)
    num_sampled = np.minimum(result.num_sampled[: len(step.rows)], expected)
    table.num_settled[step.rows] += step.counts
    skipped_rows = _take_back(table, step.rows, num_sampled, expected)
    indices = num_sampled.nonzero()[0]
    rows, counts = step.rows[indices], num_sampled[indices]
    tokens = of_tokens(result.sampled, indices, counts)
    known_before = table.num_known[rows]
    token_rows, numbers = rows, known_before
    if len(tokens) > len(rows):
        token_rows = np.repeat(rows, counts)
        numbers = np.arange(len(tokens)) + np.repeat(known_before - counts.cumsum() + counts, counts)
    stops = table.find_stops(token_rows, tokens, numbers, eos_token_ids)
    if len(tokens) > len(rows):
        is_new, counts, stops = _up_to_first(stops, counts)
        token_rows, numbers, tokens = token_rows[is_new], numbers[is_new], tokens[is_new]
    table.history[token_rows, numbers] = tokens
    table.num_known[rows] = known_before + counts
    table.awaits_mask[rows] = False
    return TokenSpans(indices, rows, counts, tokens, known_before, stops, skipped_rows)


def _take_back(table: RowTable, rows: np.ndarray, num_sampled: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The tokens that rows have not yielded count neither as planned nor as computed. Steps in flight that name a row
    without a token do what this one should have done. Returns those rows."""
    missing = expected - num_sampled
    short = missing.nonzero()[0]
    if len(short) == 0:
        return rows[short]
    short_rows, missing = rows[short], missing[short]
    table.num_planned[short_rows] -= missing
    table.num_computed[short_rows] -= missing
    table.num_settled[short_rows] -= missing
    skipped_rows = short_rows[num_sampled[short] == 0]
    assert (table.matcher[skipped_rows] > 0).all(), "a row without a mask has no token"
    table.awaits_mask[skipped_rows] = True
    return skipped_rows


def _up_to_first(stops: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts each row's tokens behind its first stop: which tokens are left, how many of each row, which rows stop."""
    owners = np.repeat(np.arange(len(counts)), counts)
    num_before = stops.cumsum() - stops
    is_left = num_before == num_before[(counts.cumsum() - counts)][owners]
    return (
        is_left,
        np.bincount(owners[is_left], minlength=len(counts)).astype(np.int32),
        np.bincount(owners[stops], minlength=len(counts)) > 0,
    )
