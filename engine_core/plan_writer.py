"""Writes one step's decisions into the arrays of a `StepPlan`; knows the format, not the policy."""

import numpy as np

from engine_core.ipc.row_fields import DEFAULT_ROW, SAMPLING_COLUMN_NAMES
from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS
from engine_core.ipc.step import (
    NUM_BLOCK_DELTAS,
    NUM_BULK,
    NUM_GIVEN,
    NUM_LOADS,
    NUM_MASKS,
    NUM_ROW_INITS,
    NUM_SCORED,
    NUM_SCORED_TOPS,
    NUM_SEQS,
    NUM_SHARED_KEYS,
    NUM_SHARING_SEQS,
    NUM_STORES,
    NUM_TOKENS,
    STEP_ID,
    StepPlan,
)
from engine_core.request import Request
from engine_core.row_table import RowTable
from engine_core.step_records import ScoredTokens
from engine_core.token_sequences import num_sequence_words, sequence_words, thinking_begin


class PlanWriter:
    """Fills one plan: first the rows' deltas in any order, at last `finish` with the rows that run."""

    def __init__(self, plan: StepPlan) -> None:
        self._plan = plan
        self._num_row_inits = 0
        self._num_block_deltas = 0
        self._num_bulk = 0
        self.num_tokens = 0
        """Of the step, known once it is finished."""

    def has_room_for(self, request: Request, num_blocks: int, eos_token_ids: tuple[int, ...]) -> bool:
        """Whether a row's start with `num_blocks` block table entries still fits into this plan."""
        return self._num_block_deltas + num_blocks <= len(self._plan.block_deltas) and self._num_bulk + _num_bulk_words(
            request, eos_token_ids
        ) <= len(self._plan.bulk)

    def start_row(self, request: Request, num_computed: int, eos_token_ids: tuple[int, ...]) -> None:
        """The record that resets a worker's row to this request."""
        sampling = request.sampling
        seed = (sampling.seed or 0) & (2**64 - 1)
        self._plan.row_inits[self._num_row_inits] = DEFAULT_ROW
        record = self._plan.row_inits[self._num_row_inits]
        self._num_row_inits += 1
        record["row"] = request.row
        record["num_computed_tokens"] = num_computed
        record["num_prompt_tokens"] = request.num_prompt_tokens
        record["num_output_tokens"] = len(request.tokens) - request.num_prompt_tokens
        for name in SAMPLING_COLUMN_NAMES:
            record[name] = getattr(sampling, name)
        if sampling.logprobs is not None:
            record["num_logprobs"] = sampling.logprobs
        record["seed_low"] = seed & 0xFFFFFFFF
        record["seed_high"] = seed >> 32
        record["penalty_slot"] = request.penalty_slot
        history = request.tokens if request.penalty_slot >= 0 else ()
        record["history_offset"], record["history_length"] = self._append_bulk(history)
        record["bias_offset"], _ = self._append_bulk(list(sampling.logit_bias))
        self._append_bulk(np.array(list(sampling.logit_bias.values()), np.float32).view(np.int32))
        record["bias_length"] = len(sampling.logit_bias)
        stops = _held_back(request, eos_token_ids)
        record["stop_offset"], record["stop_length"] = self._append_bulk(stops)
        record["allowed_offset"], record["allowed_length"] = self._append_bulk(sampling.allowed_token_ids or ())
        self._add_sequences(request, record)

    def _add_sequences(self, request: Request, record: np.void) -> None:
        sampling, tokens = request.sampling, request.tokens
        if not sampling.uses_sequences:
            return
        words = sequence_words(sampling, tokens, request.num_prompt_tokens)
        record["sequences_offset"], _ = self._append_bulk(words)
        record["num_sequences"] = len(words) // MAX_SEQUENCE_TOKENS - 1
        if sampling.thinking_token_budget is not None:
            record["thinking_budget"] = sampling.thinking_token_budget
            record["thinking_begin"] = thinking_begin(
                tokens[request.num_prompt_tokens :].tolist(),
                sampling.thinking_start_token_ids,
                sampling.thinking_end_token_ids,
            )

    def add_blocks(self, row: int, first_index: int, blocks: list[int], group: int) -> None:
        """Entries `first_index ...` of a row's block table."""
        count = len(blocks)
        deltas = self._plan.block_deltas[self._num_block_deltas : self._num_block_deltas + count]
        deltas[:, 0] = group
        deltas[:, 1] = row
        deltas[:, 2] = np.arange(first_index, first_index + count)
        deltas[:, 3] = blocks
        self._num_block_deltas += count

    def add_entries(
        self, rows: np.ndarray, firsts: np.ndarray, counts: np.ndarray, num_groups: int, blocks: list[int]
    ) -> None:
        """Entries `first ... first + count` of each row's block tables; `blocks` has them by row, then by group."""
        counts = np.repeat(counts, num_groups)  # from here on one element for each table
        offsets = np.cumsum(counts) - counts
        deltas = self._plan.block_deltas[self._num_block_deltas : self._num_block_deltas + len(blocks)]
        deltas[:, 0] = np.repeat(np.tile(np.arange(num_groups), len(rows)), counts)
        deltas[:, 1] = np.repeat(np.repeat(rows, num_groups), counts)
        deltas[:, 2] = np.repeat(np.repeat(firsts, num_groups) - offsets, counts) + np.arange(len(blocks))
        deltas[:, 3] = blocks
        self._num_block_deltas += len(blocks)

    def finish(self, step_id: int, table: RowTable, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The rows that run and how many tokens each computes (int32 [num_seqs]); returns how many each can yield.

        What lies beyond the planned tokens is drafted. Where all planned ones are computed and not all are known, the
        worker feeds the last one back.
        """
        starts, known, planned = table.num_computed[rows], table.num_known[rows], table.num_planned[rows]
        beyond = starts + counts - planned
        samples = (beyond >= 0).astype(np.int32)
        drafted = np.maximum(beyond, 0)
        given = counts - drafted - samples * (planned > known)
        sound = (given >= 0) & (given <= np.maximum(known - starts, 0)) & (drafted <= table.num_speculative_tokens)
        assert sound.all(), _contradiction(table, rows, counts, given, drafted, int(sound.argmin()))
        num_given = int(given.sum())
        self.num_prompt_tokens = 0
        if num_given:
            self.num_prompt_tokens = int(np.clip(table.num_prompt_tokens[rows] - starts, 0, given).sum())
            self._give_tokens(table, rows, starts, given)
        self.num_tokens = int(counts.sum())
        plan, num_seqs = self._plan, len(rows)
        plan.rows[:num_seqs] = rows
        plan.num_query_tokens[:num_seqs] = counts
        plan.num_given[:num_seqs] = given
        plan.num_drafted[:num_seqs] = drafted[: len(plan.num_drafted)]
        plan.samples[:num_seqs] = samples
        header = plan.header
        header[STEP_ID] = step_id
        header[NUM_SEQS] = num_seqs
        header[NUM_TOKENS] = self.num_tokens
        header[NUM_GIVEN] = num_given
        header[NUM_ROW_INITS] = self._num_row_inits
        header[NUM_BLOCK_DELTAS] = self._num_block_deltas
        header[NUM_BULK] = self._num_bulk
        masked = np.flatnonzero(samples * table.matcher[rows])
        plan.mask_rows[: len(masked)] = masked
        header[NUM_MASKS] = len(masked)
        header[NUM_STORES] = 0
        header[NUM_LOADS] = 0
        header[NUM_SHARED_KEYS] = 0
        header[NUM_SHARING_SEQS] = 0
        header[NUM_SCORED] = 0
        return samples + drafted

    def share(self, num_keys: int, num_seqs: int) -> None:
        """The first `num_keys` keys of the first `num_seqs` rows lie in the same blocks; after `finish`."""
        self._plan.header[NUM_SHARED_KEYS] = num_keys
        self._plan.header[NUM_SHARING_SEQS] = num_seqs

    def score_prompts(self, table: RowTable, rows: np.ndarray, counts: np.ndarray) -> list[ScoredTokens]:
        """Asks for log-probabilities of prompts where the rows that run want them; after `finish`."""
        scored: list[ScoredTokens] = []
        plan, offset, num_tops = self._plan, 0, 0
        places = np.cumsum(counts) - counts
        for index in np.flatnonzero(table.wants_scores[rows]):
            row = rows[index]
            request, start = table.request(row), int(table.num_computed[row])
            # The token at the end of a chunk says how likely the next one was, which the plan need not compute.
            first = max(start + 1, request.num_scored)
            end = min(start + int(counts[index]) + 1, request.num_prompt_tokens)
            table.wants_scores[row] = end < request.num_prompt_tokens
            if first >= end:
                continue
            part = slice(offset, offset + end - first)
            place = int(places[index]) + first - 1 - start
            plan.scored_indices[part] = np.arange(place, place + end - first)
            plan.scored_token_ids[part] = table.history[row, first:end]
            scored.append(ScoredTokens(request, first, end - first, offset))
            num_tops = max(num_tops, request.sampling.prompt_logprobs or 0)
            offset += end - first
        plan.header[NUM_SCORED] = offset
        plan.header[NUM_SCORED_TOPS] = num_tops
        return scored

    def add_copies(self, stores: np.ndarray, loads: np.ndarray) -> None:
        """What goes to host memory and comes back from there (each int32 [count, 2]); after `finish`."""
        plan = self._plan
        plan.stores[: len(stores)] = stores
        plan.loads[: len(loads)] = loads
        plan.header[NUM_STORES] = len(stores)
        plan.header[NUM_LOADS] = len(loads)

    def _give_tokens(self, table: RowTable, rows: np.ndarray, starts: np.ndarray, given: np.ndarray) -> None:
        """Writes the token ids that the workers cannot know yet."""
        token_ids = self._plan.token_ids
        single = (given == 1).nonzero()[0]
        offsets = np.cumsum(given) - given
        token_ids[offsets[single]] = table.history[rows[single], starts[single]]
        for index in (given > 1).nonzero()[0].tolist():
            row, start, offset = rows[index], starts[index], offsets[index]
            token_ids[offset : offset + given[index]] = table.history[row, start : start + given[index]]

    def _append_bulk(self, values: np.ndarray | list[int] | tuple[int, ...]) -> tuple[int, int]:
        offset, length = self._num_bulk, len(values)
        self._plan.bulk[offset : offset + length] = values
        self._num_bulk += length
        return offset, length


def _contradiction(
    table: RowTable, rows: np.ndarray, counts: np.ndarray, given: np.ndarray, drafted: np.ndarray, index: int
) -> str:
    planned = f"{counts[index]} tokens, {given[index]} of them given and {drafted[index]} drafted"
    return f"planned {planned}, for {table.describe(int(rows[index]))}"


def _held_back(request: Request, eos_token_ids: tuple[int, ...]) -> list[int]:
    """Token ids that may not be sampled before `min_tokens`."""
    if request.sampling.min_tokens == 0:
        return []
    eos = () if request.sampling.ignore_eos else eos_token_ids
    return [*request.stop_token_ids, *eos]


def _num_bulk_words(request: Request, eos_token_ids: tuple[int, ...]) -> int:
    history = len(request.tokens) if request.sampling.uses_penalties else 0
    lists = 2 * len(request.sampling.logit_bias) + len(request.sampling.allowed_token_ids or ())
    return history + lists + len(_held_back(request, eos_token_ids)) + num_sequence_words(request.sampling)
