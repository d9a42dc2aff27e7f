"""What one step is, as arrays: `StepPlan` from the engine core to the workers, `LateMasks` after it, `StepResult` back.

Legend: S = max_num_seqs, T = max_num_batched_tokens, B = capacity for block deltas, M = capacity of the bulk region,
K = num_speculative_tokens, L = MAX_LOGPROBS, W = num_mask_words.

A plan is a delta against the rows that the workers keep (DESIGN "Steps in flight"). A worker applies it in this order:
`row_inits`, `block_deltas`, then runs the `num_seqs` scheduled rows. For scheduled row i it takes
`num_query_tokens[i]` tokens at positions `num_computed_tokens[row] ...`, then advances that counter. They are, in this
order: at most one that is fed back, which the row sampled last and which never left the device; `num_given[i]` that
stand in `token_ids` (one row after the other); `num_drafted[i]` that the worker drafts itself. The number fed back is
what the other two leave. Where `samples[i]` is 1 a token is sampled from the last position's logits and becomes the
row's last token.

A row with drafts yields 1 to `num_drafted[i] + 1` tokens: the drafts that were accepted and one more. It stays as if
the drafts that were not had not been computed: `num_computed_tokens` counts accepted ones only. The plan of a step
behind it states the same positions whatever was accepted, so a worker takes them from its own counter.

A plan whose header says `num_scored` > 0 also wants to know how likely tokens of prompts were. `scored_indices[j]` is
the place, among all tokens of the step, whose logits predict the prompt's token `scored_token_ids[j]`: that one may
belong to a later chunk. `scores[j]` of the result is what they say of it.

A plan whose header says `num_masks` > 0 has a late part (`Ring.is_late_published`): what a grammar allows can only be
known when the token before is, and that is while the step is computed already. Mask k is for the scheduled row
`mask_rows[k]`. A mask is there once the late part's `sequences[k]` is the plan's sequence number.

A step does not wait long for a mask. It skips the row whose mask has not come in time: `num_sampled` is 0, and the row
stays as if its last query token had not been computed. `num_computed_tokens` goes back by one, and that token is the
row's last one. So a step that is in flight behind this one does what this one should have done.

`num_shared_keys` of the header: so many of the first keys, all computed by earlier steps, lie in the same blocks in the
tables of the first `num_sharing_seqs` scheduled rows, which take one token each. A worker may read them once for all
these rows, or as if it did not know.

Where blocks have a second tier in host memory, the step begins with the copies of `stores`, then those of `loads`, each
of one block's whole memory: blocks that it stores may be written by it, blocks that it loads may be read.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from engine_core.ipc.arrays import ArrayLayout
from engine_core.ipc.row_fields import ROW_INIT_DTYPE
from engine_core.ipc.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_SEQUENCE_TOKENS,
    MAX_STOP_TOKEN_IDS,
)

MAX_SEQUENCES = 2 + MAX_BAD_WORDS
"""Of a row: what begins thinking, what ends it, bad words."""
MAX_HELD_BACK = MAX_STOP_TOKEN_IDS + 64
"""Stop token ids and EOS ids of one row that may not be sampled before `min_tokens`."""
THINKING_NOT_BEGUN, THINKING_ENDED = -1, -2
"""In a record's `thinking_begin`, in place of a number of tokens."""

_CACHED_ENTRIES = 8192
"""Of 64 prompts that share 2,048 tokens, at 16 a block: so many can start in one step. In 128 KiB, 3 us over PCIe."""


class StepShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The capacities that fix the layout of both slots."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_groups: int = 1
    """Layer groups with block tables of their own."""
    num_speculative_tokens: int = 0
    num_mask_words: int = 0
    """Words in a mask of the late part, ceil(vocab_size / 32); 0: no step has a late part, and it takes no memory."""
    num_host_blocks: int = 0
    """Blocks that fit into host memory; 0: there are neither stores nor loads."""

    @property
    def max_blocks_per_row(self) -> int:
        return -(-self.max_model_len // self.block_size)

    @property
    def max_block_deltas(self) -> int:
        """One whole block table (a resumed or cached row) and the cached beginnings of others, beside what any step's
        new tokens can need."""
        most = self.max_num_seqs * self.max_blocks_per_row
        cached = min(most, self.max_blocks_per_row + _CACHED_ENTRIES)
        return self.num_groups * (cached + self._max_new_blocks)

    @property
    def max_loads(self) -> int:
        """The whole prefix of any one request."""
        return min(self.num_groups * self.max_blocks_per_row, self.num_host_blocks)

    @property
    def max_stores(self) -> int:
        """What a step's new tokens and loads can evict."""
        return min(self.num_groups * self._max_new_blocks + self.max_loads, self.num_host_blocks)

    @property
    def _max_new_blocks(self) -> int:
        return -(-self.max_num_batched_tokens // self.block_size) + self.max_num_seqs

    @property
    def max_bulk(self) -> int:
        """One request's longest token history and all its lists, beside a share for short ones."""
        one = self.max_model_len + 2 * MAX_LOGIT_BIAS + MAX_HELD_BACK
        one += MAX_ALLOWED_TOKEN_IDS + (MAX_SEQUENCES + 1) * MAX_SEQUENCE_TOKENS
        return one + max(self.max_num_batched_tokens, 64 * self.max_num_seqs)


# What the logits before a prompt's token say of it, and the most likely tokens in its place; all of 4 bytes as well.
SCORE_DTYPE = np.dtype(
    [
        ("logprob", "<f4"),
        ("rank", "<i4"),  # 1 is the most likely
        ("top_token_ids", "<i4", (MAX_LOGPROBS,)),
        ("top_logprobs", "<f4", (MAX_LOGPROBS,)),
    ]
)

# Indexes into a plan's header.
STEP_ID, NUM_SEQS, NUM_TOKENS, NUM_GIVEN, NUM_ROW_INITS, NUM_BLOCK_DELTAS, NUM_BULK, NUM_MASKS = range(8)
NUM_STORES, NUM_LOADS, NUM_SHARED_KEYS, NUM_SHARING_SEQS, NUM_SCORED, NUM_SCORED_TOPS = range(8, 14)
# Indexes into a result's header.
RESULT_STEP_ID, RESULT_NUM_SEQS, STARTED_NS, ENDED_NS, NUM_HOST_SLOTS = range(5)


def plan_layout(shape: StepShape) -> ArrayLayout:
    """Where the arrays of a `StepPlan` lie in a slot."""
    s, t = shape.max_num_seqs, shape.max_num_batched_tokens
    return ArrayLayout(
        {
            "header": ("<i8", (16,)),
            "rows": ("<i4", (s,)),
            "num_query_tokens": ("<i4", (s,)),
            "num_given": ("<i4", (s,)),
            "num_drafted": ("<i4", (s if shape.num_speculative_tokens else 0,)),
            "samples": ("<i4", (s,)),
            "token_ids": ("<i4", (t,)),
            "row_inits": (ROW_INIT_DTYPE, (s,)),
            "block_deltas": ("<i4", (shape.max_block_deltas, 4)),  # (group, row, index in its table, block id)
            "bulk": ("<i4", (shape.max_bulk,)),
            "scored_indices": ("<i4", (t,)),
            "scored_token_ids": ("<i4", (t,)),
            "stores": ("<i4", (shape.max_stores, 2)),  # (block, slot of the host's memory)
            "loads": ("<i4", (shape.max_loads, 2)),  # the same
            "mask_rows": ("<i4", (s if shape.num_mask_words else 0,)),
        }
    )


def late_layout(shape: StepShape) -> ArrayLayout:
    """Where the arrays of `LateMasks` lie in a slot's late part."""
    return ArrayLayout(
        {
            "sequences": ("<i8", (shape.max_num_seqs if shape.num_mask_words else 0,)),
            "masks": ("<i4", (shape.max_num_seqs, shape.num_mask_words)),
        }
    )


def result_layout(shape: StepShape) -> ArrayLayout:
    """Where the arrays of a `StepResult` lie in a slot. Row i of each is the plan's scheduled row i."""
    s, k = shape.max_num_seqs, shape.num_speculative_tokens + 1
    return ArrayLayout(
        {
            "header": ("<i8", (8,)),
            "num_sampled": ("<i4", (s,)),
            "sampled": ("<i4", (s, k)),
            "logprobs": ("<f4", (s, k)),
            "ranks": ("<i4", (s, k)),
            "top_token_ids": ("<i4", (s, k, MAX_LOGPROBS)),
            "top_logprobs": ("<f4", (s, k, MAX_LOGPROBS)),
            "scores": (SCORE_DTYPE, (shape.max_num_batched_tokens,)),
        }
    )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The arrays of one plan at full capacity over a ring's slot or any buffer; `header` says how much counts."""

    header: np.ndarray
    rows: np.ndarray
    num_query_tokens: np.ndarray
    num_given: np.ndarray
    num_drafted: np.ndarray
    samples: np.ndarray
    token_ids: np.ndarray
    row_inits: np.ndarray
    block_deltas: np.ndarray
    bulk: np.ndarray
    scored_indices: np.ndarray
    scored_token_ids: np.ndarray
    stores: np.ndarray
    loads: np.ndarray
    mask_rows: np.ndarray

    @classmethod
    def over(cls, layout: ArrayLayout, buffer: memoryview | bytearray) -> "StepPlan":
        return cls(**layout.views(buffer))

    @property
    def step_id(self) -> int:
        return int(self.header[STEP_ID])

    @property
    def num_seqs(self) -> int:
        return int(self.header[NUM_SEQS])

    @property
    def num_tokens(self) -> int:
        return int(self.header[NUM_TOKENS])

    @property
    def num_masks(self) -> int:
        """How many masks the late part brings; 0: there is none."""
        return int(self.header[NUM_MASKS])

    @property
    def num_shared_keys(self) -> int:
        return int(self.header[NUM_SHARED_KEYS])

    @property
    def num_scored(self) -> int:
        """Tokens of prompts whose log-probabilities are wanted."""
        return int(self.header[NUM_SCORED])

    @property
    def num_scored_tops(self) -> int:
        """The most alternatives that any of them wants."""
        return int(self.header[NUM_SCORED_TOPS])

    @property
    def num_stores(self) -> int:
        return int(self.header[NUM_STORES])

    @property
    def num_loads(self) -> int:
        return int(self.header[NUM_LOADS])


@dataclass(frozen=True, slots=True)
class LateMasks:
    """The late part of a step at full capacity; the plan's `num_masks` says how much counts."""

    sequences: np.ndarray
    """int64 [S]: the sequence number of the plan whose mask is complete in each place; stored after the mask."""
    masks: np.ndarray
    """int32 [S, W]: bit t % 32 of word t // 32 says whether token t may be sampled."""

    @classmethod
    def over(cls, layout: ArrayLayout, buffer: memoryview | bytearray) -> "LateMasks":
        return cls(**layout.views(buffer))


@dataclass(frozen=True, slots=True)
class StepResult:
    """The arrays of one result at full capacity. Times in monotonic ns.

    Row i has `num_sampled[i]` tokens; rows without a sample have 0, those that were skipped included. Log-probabilities
    count only for rows whose `num_logprobs` is 0 or more; the columns of the tops beyond that number mean nothing.
    """

    header: np.ndarray
    num_sampled: np.ndarray
    sampled: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    top_token_ids: np.ndarray
    top_logprobs: np.ndarray
    scores: np.ndarray
    """Of the plan's scored tokens, in its order; tops beyond the plan's `num_scored_tops` mean nothing."""

    @classmethod
    def over(cls, layout: ArrayLayout, buffer: memoryview | bytearray) -> "StepResult":
        return cls(**layout.views(buffer))

    @property
    def step_id(self) -> int:
        return int(self.header[RESULT_STEP_ID])

    @property
    def num_host_slots(self) -> int:
        """Slots of host memory that steps may name from now on; it only grows."""
        return int(self.header[NUM_HOST_SLOTS])

    @property
    def num_seqs(self) -> int:
        return int(self.header[RESULT_NUM_SEQS])


def of_tokens(column: np.ndarray, indices: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The entries [num_tokens, ...] of the first `counts` [n] tokens of each of a result's rows `indices` [n], one row
    after the other; `column` is [S, K + 1, ...]."""
    width = column.shape[1]
    if width == 1:
        return column[indices, 0]
    return column[indices][np.arange(width) < counts[:, None]]
