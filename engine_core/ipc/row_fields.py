"""A row's record, by which a plan starts the row: its columns, and what of the sampler a record asks for.

Sampling parameters have the columns that the schema gives them (`sampling_params.py`). The others are here: how far the
request is, where its lists lie in the plan's bulk region, and what follows from parameters that are no plain number.
"""

from dataclasses import dataclass

import numpy as np

from engine_core.ipc.sampling_params import (
    ALLOWED,
    BIAS,
    FIELDS,
    HELD_BACK,
    INT,
    LOGPROBS,
    OF_DRAWN_ROWS,
    PENALTIES,
    RANDOM,
    SEQUENCES,
    UINT,
    SamplingParams,
)


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str = INT
    unused: float = 0
    """Its value in a row that does not use it."""
    need: int = 0
    """What a row that uses it needs of the sampler."""


_REQUEST_COLUMNS = (
    Column("row"),
    Column("num_computed_tokens"),
    Column("num_prompt_tokens"),
    Column("num_output_tokens"),  # already there when the row starts (a resume)
    Column("num_logprobs", unused=-1, need=LOGPROBS),
    Column("seed_low", UINT),
    Column("seed_high", UINT),
    Column("penalty_slot", unused=-1, need=PENALTIES),  # an index into the pool of token counts
    Column("history_offset"),  # bulk: prompt and output token ids, present when penalty_slot >= 0
    Column("history_length"),
    Column("bias_offset"),  # bulk: `bias_length` token ids, then as many float32 values (bit patterns)
    Column("bias_length", need=BIAS),
    Column("stop_offset"),  # bulk: token ids that may not be sampled before min_tokens
    Column("stop_length", need=HELD_BACK),
    Column("allowed_offset"),  # bulk: the only ids that can be sampled
    Column("allowed_length", need=ALLOWED),  # 0: all can
    # bulk: `num_sequences` sequences of MAX_SEQUENCE_TOKENS ids each, the last id first, -1 where they are shorter:
    # what begins thinking, what ends it, bad words. Behind them the latest tokens of the output, of position p
    # at index p % MAX_SEQUENCE_TOKENS.
    Column("sequences_offset"),
    Column("num_sequences", need=SEQUENCES),
    Column("thinking_budget", unused=-1),
    Column("thinking_begin"),  # output tokens before the first that is thinking, or THINKING_...
)
_DEFAULTS = SamplingParams()
_SAMPLING_COLUMNS = tuple(
    Column(name, field.column, getattr(_DEFAULTS, name), field.need) for name, field in FIELDS.items() if field.column
)
SAMPLING_COLUMN_NAMES = tuple(column.name for column in _SAMPLING_COLUMNS)
"""Columns whose value is that of the sampling parameter of the same name."""
_COLUMNS = (*_REQUEST_COLUMNS, *_SAMPLING_COLUMNS)
_NEEDING_COLUMNS = tuple(column for column in _COLUMNS if column.need)

# All take 4 bytes, so that a device can read the records as one int32 matrix [num_row_inits, NUM_ROW_FIELDS].
ROW_INIT_DTYPE = np.dtype([(column.name, column.type) for column in _COLUMNS])
NUM_ROW_FIELDS = len(_COLUMNS)
ROW_FIELD_INDEX = {column.name: index for index, column in enumerate(_COLUMNS)}
"""In which column of that matrix each field stands."""
DEFAULT_ROW = np.array(tuple(column.unused for column in _COLUMNS), ROW_INIT_DTYPE)
"""The record of a request that gives no parameters."""
DEFAULT_ROW.flags.writeable = False


def needs_of(records: np.ndarray) -> np.ndarray:
    """What each of the records [N] needs of the sampler, as bits, int32 [N]."""
    is_drawn = (records["temperature"] > 0) & (records["top_k"] != 1)
    needs = is_drawn * np.int32(RANDOM)
    for column in _NEEDING_COLUMNS:
        used = records[column.name] != column.unused
        needs |= (used & is_drawn if column.need & OF_DRAWN_ROWS else used) * np.int32(column.need)
    return needs
