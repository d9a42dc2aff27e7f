"""Steps for the tests of the sampler's kernels: records with given parameters, in scattered rows."""

import numpy as np
import torch

from engine_core.ipc.row_fields import DEFAULT_ROW, NUM_ROW_FIELDS, ROW_FIELD_INDEX
from kernels.step_tensors import RowTensors, SampledRows
from tests.kernels.device import DEVICE


def make_records(count: int, **values: object) -> np.ndarray:
    """`count` records of greedy requests that ask for nothing, but for `values` (scalars or one value a record)."""
    records = np.full(count, DEFAULT_ROW)
    records["temperature"] = 0.0
    for name, value in values.items():
        records[name] = value
    return records


def row_tensors(**tensors: torch.Tensor) -> RowTensors:
    """Those that a test is about; the others are empty."""
    empty = dict.fromkeys(RowTensors.__slots__, torch.zeros(0))
    return RowTensors(**{**empty, **tensors})


def make_step(
    records: np.ndarray, seq_lens: np.ndarray | None = None, samples: np.ndarray | None = None, seed: int = 0
) -> SampledRows:
    """Schedules the records, each in a row of its own among more rows than records; all rows that are not scheduled
    hold garbage."""
    count = len(records)
    generator = np.random.default_rng(seed)
    num_rows = 2 * count + 3
    fields = generator.integers(-(2**31), 2**31, (num_rows, NUM_ROW_FIELDS)).astype(np.int32)
    rows = generator.permutation(num_rows)[:count].astype(np.int32)
    fields[rows] = records.view(np.int32).reshape(count, NUM_ROW_FIELDS)
    seq_lens = np.full(count, 7) if seq_lens is None else seq_lens
    samples = np.ones(count) if samples is None else samples
    rows, samples, seq_lens, fields = (
        torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(DEVICE)
        for array in (rows, samples, seq_lens, fields)
    )
    return SampledRows(rows, samples, seq_lens, fields, ROW_FIELD_INDEX)
