"""What lies on the device between two steps: the rows, the inputs of the step that runs, and where a plan has what
these are made from. `prepare_step.py` fills them, the sampling kernels and the forward pass read them.

Legend: S = rows, N = scheduled rows of the step, F = fields of a row's record, V = vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kernels.checks import check_dense, check_rows


@dataclass(frozen=True, slots=True)
class PlanPlaces:
    """Constants of the kernels that follow from the plan's format: where its arrays begin, in int32 words of the slot
    (`arrays`), and which words of a row's record mean what (`fields`). Names as in the step's format, in capitals."""

    arrays: dict[str, int]
    fields: dict[str, int]
    num_fields: int
    shared_keys: int
    """The word that says with how many keys in the same blocks rows begin."""
    sharing_seqs: int
    """The word that says how many of the first sequences do."""

    def constants(self, arrays: tuple[str, ...], fields: tuple[str, ...] = ()) -> dict[str, int]:
        """AT_... and FIELD_... for a launch."""
        places = {f"AT_{name.upper()}": self.arrays[name] for name in arrays}
        return places | {f"FIELD_{name.upper()}": self.fields[name] for name in fields}


@dataclass(frozen=True, slots=True)
class RowTensors:
    """The rows on the device; all int32 but for `bias_values` (float32) and `prompt_mask` (uint8)."""

    fields: torch.Tensor  # [S, F]
    last_token: torch.Tensor  # [S]
    num_computed_tokens: torch.Tensor  # [S]
    block_tables: torch.Tensor  # [groups, S, max_blocks]
    bias_ids: torch.Tensor  # [S, max biases]
    bias_values: torch.Tensor  # [S, max biases]
    stop_ids: torch.Tensor  # [S, max ids held back]
    allowed_ids: torch.Tensor  # [S, max ids allowed]
    sequences: torch.Tensor  # [S, max sequences, their tokens]
    latest_tokens: torch.Tensor  # [S, tokens of a sequence]: of position p at p modulo their number
    thinking_begin: torch.Tensor  # [S]
    prompt_mask: torch.Tensor  # [penalty slots, V]
    output_counts: torch.Tensor  # [penalty slots, V]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """One step's inputs at full capacity; a padded step uses their beginnings. All int32."""

    rows: torch.Tensor  # [S]; padding names row 0
    samples: torch.Tensor  # [S]: whether the sequence samples; 0 where padded
    query_start_loc: torch.Tensor  # [S + 1]
    seq_lens: torch.Tensor  # [S], this step's tokens included; 0 where padded
    logits_indices: torch.Tensor  # [S]: each sequence's last token; 0 where padded
    input_ids: torch.Tensor  # [max tokens]; 0 where padded
    positions: torch.Tensor  # [max tokens]; 0 where padded
    slot_mapping: torch.Tensor  # [groups, max tokens]; -1 where padded
    shared: torch.Tensor  # [2]: so many keys in the same blocks, and with them so many of the first sequences begin


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The scheduled rows of a step as the sampler sees them; padded entries have row 0 and sample nothing."""

    rows: torch.Tensor
    """int32 [N]: which row each one is."""
    samples: torch.Tensor
    """int32 [N]: 0 where no token is sampled in this step; nothing of such a row is touched."""
    seq_lens: torch.Tensor
    """int32 [N]: the number of tokens before the sampled one."""
    fields: torch.Tensor
    """int32 [S, F]: the records."""
    columns: Mapping[str, int]
    """In which column of the records each field stands."""

    def __post_init__(self) -> None:
        for name in ("rows", "samples", "seq_lens"):
            check_dense(getattr(self, name), (len(self.rows),), torch.int32)
        check_dense(self.fields, (len(self.fields), self.fields.shape[1]), torch.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, num_rows: int) -> "SampledRows":
        """The first `num_rows` of them."""
        return SampledRows(
            self.rows[:num_rows], self.samples[:num_rows], self.seq_lens[:num_rows], self.fields, self.columns
        )

    def constants(self, *names: str) -> dict[str, int]:
        """The columns of the fields `names` as a kernel's constants, whose names are in capitals."""
        return {name.upper(): self.columns[name] for name in names}

    def check_logits(self, logits: torch.Tensor) -> None:
        """Logits are float32 [N, V], whose rows may lie apart."""
        check_rows(logits, (len(self.rows), logits.shape[1]), torch.float32)


Processor = Callable[[torch.Tensor, SampledRows, RowTensors], None]
"""Changes the logits [N, V] of the scheduled rows in place, where a row's record asks for it."""
