"""What a worker keeps of the rows from step to step, and a step's inputs: tables of tensors.

The worker allocates what stands here and the memory plan counts it. Names are those of `kernels/step_tensors.py`, which
says what they mean.
"""

from engine_core.ipc.arrays import ArrayLayout
from engine_core.ipc.row_fields import NUM_ROW_FIELDS
from engine_core.ipc.sampling_params import MAX_ALLOWED_TOKEN_IDS, MAX_LOGIT_BIAS, MAX_SEQUENCE_TOKENS
from engine_core.ipc.step import MAX_HELD_BACK, MAX_SEQUENCES, StepShape


def row_layout(shape: StepShape) -> ArrayLayout:
    """The rows, apart from the token counts of those with penalties."""
    s = shape.max_num_seqs
    return ArrayLayout(
        {
            "fields": ("<i4", (s, NUM_ROW_FIELDS)),
            "last_token": ("<i4", (s,)),
            "num_computed_tokens": ("<i4", (s,)),
            "block_tables": ("<i4", (shape.num_groups, s, shape.max_blocks_per_row)),
            "bias_ids": ("<i4", (s, MAX_LOGIT_BIAS)),
            "bias_values": ("<f4", (s, MAX_LOGIT_BIAS)),
            "stop_ids": ("<i4", (s, MAX_HELD_BACK)),
            "allowed_ids": ("<i4", (s, MAX_ALLOWED_TOKEN_IDS)),
            "sequences": ("<i4", (s, MAX_SEQUENCES, MAX_SEQUENCE_TOKENS)),
            "latest_tokens": ("<i4", (s, MAX_SEQUENCE_TOKENS)),
            "thinking_begin": ("<i4", (s,)),
        }
    )


def penalty_layout(num_slots: int, vocab_size: int) -> ArrayLayout:
    """Of rows with penalties: whether the prompt has a token, and how often the output has it."""
    return ArrayLayout(
        {"prompt_mask": ("u1", (num_slots, vocab_size)), "output_counts": ("<i4", (num_slots, vocab_size))}
    )


def input_layout(shape: StepShape) -> ArrayLayout:
    """The inputs of one step."""
    s, t = shape.max_num_seqs, shape.max_num_batched_tokens
    return ArrayLayout(
        {
            "rows": ("<i4", (s,)),
            "samples": ("<i4", (s,)),
            "query_start_loc": ("<i4", (s + 1,)),
            "seq_lens": ("<i4", (s,)),
            "logits_indices": ("<i4", (s,)),
            "input_ids": ("<i4", (t,)),
            "positions": ("<i4", (t,)),
            "slot_mapping": ("<i4", (shape.num_groups, t)),
            "shared": ("<i4", (2,)),
        }
    )
