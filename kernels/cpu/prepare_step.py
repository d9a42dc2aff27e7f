"""`kernels/prepare_step.py` on a CPU: rows' deltas applied and a step's inputs built, by numpy over the same memory.

Legend: S = rows, N = scheduled sequences of the padded step, T = tokens of the padded step, F = fields of a record.
"""

import numpy as np
import torch

from kernels.step_tensors import PlanPlaces, RowTensors, StepTensors


class StepPreparation:
    """Everything but the plan lies in the same tensors for good."""

    def __init__(
        self, places: PlanPlaces, rows: RowTensors, step: StepTensors, block_size: int, slot: torch.Tensor
    ) -> None:
        """`slot` int32: a plan's words, an example."""
        assert slot.dtype == torch.int32
        self._places = places
        self._rows = {name: getattr(rows, name).numpy() for name in RowTensors.__slots__}
        self._step = {name: getattr(step, name).numpy() for name in StepTensors.__slots__}
        self._block_size = block_size

    def apply_plan(self, slot: torch.Tensor, num_inits: int, num_deltas: int) -> None:
        """Starts rows, then writes block table entries."""
        words, arrays, rows = slot.numpy(), self._places.arrays, self._rows
        bulk = words[arrays["bulk"] :]
        first, width = arrays["row_inits"], self._places.num_fields
        for record in words[first : first + num_inits * width].reshape(num_inits, width):
            self._start_row(record, bulk)
        first = arrays["block_deltas"]
        group, row, index, block = words[first : first + 4 * num_deltas].reshape(num_deltas, 4).T
        rows["block_tables"][group, row, index] = block

    def _start_row(self, record: np.ndarray, bulk: np.ndarray) -> None:
        rows = self._rows
        field = {name: int(record[column]) for name, column in self._places.fields.items()}
        row = field["row"]
        rows["fields"][row] = record
        rows["num_computed_tokens"][row] = field["num_computed_tokens"]

        def listed(name: str, most: int) -> np.ndarray:
            offset = field[f"{name}_offset"]
            return bulk[offset : offset + min(field[f"{name}_length"], most)]

        for name in ("bias", "stop", "allowed"):
            target = rows[f"{name}_ids"][row]
            ids = listed(name, len(target))
            target[: len(ids)] = ids
        count, offset = field["bias_length"], field["bias_offset"]
        values = bulk[offset + count : offset + 2 * count].view(np.float32)
        rows["bias_values"][row, : len(values)] = values
        if field["num_sequences"] > 0:
            sequences, latest = rows["sequences"][row], rows["latest_tokens"][row]
            offset, num_words = field["sequences_offset"], field["num_sequences"] * len(latest)
            sequences.reshape(-1)[:num_words] = bulk[offset : offset + num_words]
            latest[:] = bulk[offset + num_words : offset + num_words + len(latest)]
            rows["thinking_begin"][row] = field["thinking_begin"]
        slot = field["penalty_slot"]
        if slot >= 0:
            offset, length, num_prompt_tokens = (
                field[name] for name in ("history_offset", "history_length", "num_prompt_tokens")
            )
            history = bulk[offset : offset + length]
            rows["prompt_mask"][slot] = 0
            rows["prompt_mask"][slot, history[:num_prompt_tokens]] = 1
            rows["output_counts"][slot] = 0
            np.add.at(rows["output_counts"][slot], history[num_prompt_tokens:], 1)

    def prepare_inputs(
        self, slot: torch.Tensor, num_seqs: int, num_tokens: int, num_padded_seqs: int, num_padded_tokens: int
    ) -> None:
        """The inputs of the plan's scheduled sequences; advances the rows' counters."""
        words, places, step, block_size = slot.numpy(), self._places, self._step, self._block_size

        def planned(name: str) -> np.ndarray:
            first = places.arrays[name]
            return words[first : first + num_seqs]

        step["shared"][:] = words[[places.shared_keys, places.sharing_seqs]]
        for name, value in (("rows", 0), ("samples", 0), ("seq_lens", 0), ("logits_indices", 0)):
            step[name][num_seqs:num_padded_seqs] = value
        step["query_start_loc"][num_seqs + 1 : num_padded_seqs + 1] = num_tokens
        for name, value in (("input_ids", 0), ("positions", 0)):
            step[name][num_tokens:num_padded_tokens] = value
        step["slot_mapping"][:, num_tokens:num_padded_tokens] = -1
        step["query_start_loc"][0] = 0
        if num_seqs == 0:
            return
        rows, counts, given = planned("rows"), planned("num_query_tokens"), planned("num_given")
        ends = np.cumsum(counts)
        starts = ends - counts
        computed, last_token = self._rows["num_computed_tokens"], self._rows["last_token"]
        before = computed[rows]
        input_ids, positions = step["input_ids"][:num_tokens], step["positions"][:num_tokens]
        # A token that is not given is the first of its sequence, and the row's last one.
        is_given = np.ones(num_tokens, np.bool_)
        fed_back = given < counts
        is_given[starts[fed_back]] = False
        first = places.arrays["token_ids"]
        input_ids[is_given] = words[first : first + int(given.sum())]
        input_ids[starts[fed_back]] = last_token[rows[fed_back]]
        positions[:] = np.arange(num_tokens) + np.repeat(before - starts, counts)
        table_rows = np.repeat(rows, counts)
        for tables, slots in zip(self._rows["block_tables"], step["slot_mapping"], strict=True):
            blocks = tables[table_rows, positions // block_size]
            slots[:num_tokens] = blocks * block_size + positions % block_size
        step["rows"][:num_seqs] = rows
        step["samples"][:num_seqs] = planned("samples")
        step["query_start_loc"][1 : num_seqs + 1] = ends
        step["seq_lens"][:num_seqs] = before + counts
        step["logits_indices"][:num_seqs] = ends - 1
        last_token[rows] = input_ids[ends - 1]
        computed[rows] = before + counts
