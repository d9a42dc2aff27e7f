"""The sampler's operations on a CPU: what changes logits before a token is chosen, and the choice.

Each has the shapes and the meaning of the kernel of its name (`kernels/logits_processors.py`, `kernels/sample.py`,
`kernels/logits_masks.py`): `logits` float32 [N, V] of the scheduled rows, changed in place, where they are asked for.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, P = rows of the penalty pool.
"""

import numpy as np
import torch

from kernels import reference_sampling as reference
from kernels.reference_random import row_keys
from kernels.step_tensors import Processor, RowTensors, SampledRows

LOWEST = torch.finfo(torch.float32).min
"""Instead of -inf where all tokens of a row may be ruled out."""
_START, _END, _FIRST_BAD_WORD = range(3)
_NOT_BEGUN, _ENDED = -1, -2


class _Fields:
    """Columns of the records of the scheduled rows that sample."""

    def __init__(self, step: SampledRows) -> None:
        self.index = step.samples.nonzero().flatten()
        self.rows = step.rows[self.index].long()
        self._records = step.fields[self.rows]
        self._columns = step.columns

    def integers(self, name: str) -> torch.Tensor:
        return self._records[:, self._columns[name]]

    def floats(self, name: str) -> torch.Tensor:
        return self.integers(name).view(torch.float32)

    def is_drawn(self) -> torch.Tensor:
        """Not greedy. Rows of top_k 1 are, so that equal logits do not make that a lottery."""
        return (self.floats("temperature") > 0) & (self.integers("top_k") != 1)

    def where(self, wanted: torch.Tensor) -> list[tuple[int, int, int]]:
        """Of the rows that `wanted` [n] names: place among these fields, place in the logits, row."""
        places = wanted.nonzero().flatten()
        columns = (places, self.index[places], self.rows[places])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _known(ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Those that have a logit."""
    return ids[(ids >= 0) & (ids < vocab_size)].long()


def add_logit_bias(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    lengths = fields.integers("bias_length")
    for place, i, row in fields.where(lengths > 0):
        ids, values = rows.bias_ids[row, : lengths[place]], rows.bias_values[row, : lengths[place]]
        is_known = ids < logits.shape[1]
        logits[i].index_add_(0, ids[is_known], values[is_known])


def hold_back_stops(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    lengths = fields.integers("stop_length")
    num_outputs = step.seq_lens[fields.index] - fields.integers("num_prompt_tokens")
    for place, i, row in fields.where((lengths > 0) & (num_outputs < fields.integers("min_tokens"))):
        logits[i, _known(rows.stop_ids[row, : lengths[place]], logits.shape[1])] = LOWEST


def apply_penalties(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    slots = fields.integers("penalty_slot").long()
    places = (slots >= 0).nonzero().flatten()
    index, slots = fields.index[places], slots[places]
    penalized = logits[index]
    reference.apply_penalties(
        penalized,
        rows.prompt_mask[slots].bool(),
        rows.output_counts[slots],
        *(fields.floats(f"{name}_penalty")[places] for name in ("repetition", "presence", "frequency")),
    )
    logits[index] = penalized


def keep_allowed(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    lengths = fields.integers("allowed_length")
    for place, i, row in fields.where(lengths > 0):
        ids = _known(rows.allowed_ids[row, : lengths[place]], logits.shape[1])
        kept = logits[i, ids]
        logits[i] = LOWEST
        logits[i, ids] = kept


def follow_sequences(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    counts, budgets = fields.integers("num_sequences"), fields.integers("thinking_budget")
    num_before, num_prompts = fields.integers("num_output_tokens"), fields.integers("num_prompt_tokens")
    length = rows.latest_tokens.shape[1]
    for place, i, row in fields.where(counts > 0):
        seq_len = int(step.seq_lens[i])
        num_outputs = seq_len - int(num_prompts[place])
        latest = rows.latest_tokens[row]
        if num_outputs > num_before[place]:  # else the plan brought them all
            latest[(seq_len - 1) % length] = rows.last_token[row]
        output = latest[torch.arange(seq_len - min(num_outputs, length), seq_len) % length].tolist()
        words = [[t for t in word[::-1] if t >= 0] for word in rows.sequences[row, : counts[place]].tolist()]
        ruled_out = [word[-1] for word in words[_FIRST_BAD_WORD:] if _ends_with(output, word[:-1])]
        logits[i, [token for token in ruled_out if token < logits.shape[1]]] = LOWEST
        budget = int(budgets[place])
        if budget < 0:
            continue
        begin, end = int(rows.thinking_begin[row]), words[_END]
        if begin == _NOT_BEGUN and words[_START] and _ends_with(output, words[_START]):
            begin = num_outputs
        if begin >= 0 and num_outputs - begin >= len(end) and _ends_with(output, end):
            begin = _ENDED
        rows.thinking_begin[row] = begin
        num_over = num_outputs - begin - budget
        if begin >= 0 and num_over >= 0:
            logits[i] = LOWEST
            # A request may go on behind an output that is further than that.
            logits[i, end[num_over % len(end)]] = 0.0


def _ends_with(output: list[int], tokens: list[int]) -> bool:
    return len(tokens) <= len(output) and output[len(output) - len(tokens) :] == tokens


def apply_token_masks(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    reference.apply_token_masks(logits, rows.long(), masks)


def keep_top_n_sigma(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    fields = _Fields(step)
    num_sigmas = fields.floats("top_n_sigma")
    places = (fields.is_drawn() & (num_sigmas > 0)).nonzero().flatten()
    kept = logits[fields.index[places]]
    reference.keep_top_n_sigma(kept, num_sigmas[places])
    logits[fields.index[places]] = kept


PROCESSORS: dict[str, Processor] = {
    "bias": add_logit_bias,
    "penalties": apply_penalties,
    "held_back": hold_back_stops,
    "allowed": keep_allowed,
    "sequences": follow_sequences,
    "top_n_sigma": keep_top_n_sigma,
}
"""What changes logits, by the name of what a row needs."""


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return reference.token_logprobs(logits, token_ids.long(), num_top)


class TokenSampler:
    """Chooses the tokens of steps whose inputs always lie in the same tensors."""

    def __init__(
        self, logits: torch.Tensor, step: SampledRows, last_token: torch.Tensor, output_counts: torch.Tensor
    ) -> None:
        """At full capacity: `logits` float32 [S, V]; `step` of S rows; `last_token` int32 [S]; `output_counts` int32
        [P, V] of the penalty pool."""
        self._logits, self._step = logits, step
        self._last_token, self._output_counts = last_token, output_counts

    def sample(
        self, num_rows: int, sampled: torch.Tensor, num_sampled: torch.Tensor, any_drawn: bool, any_filtered: bool
    ) -> None:
        """As the kernel's: a token for each of the step's first `num_rows` rows that samples."""
        step = self._step.first(num_rows)
        num_sampled[:num_rows] = step.samples
        fields = _Fields(step)
        index, rows = fields.index, fields.rows
        if len(index) == 0:
            return
        logits = self._logits[:num_rows] if len(index) == num_rows else self._logits[index]
        token_ids = _choose(logits, fields, step.seq_lens[index]) if any_drawn else reference.greedy(logits)
        tokens = token_ids.to(torch.int32)
        sampled[index] = tokens
        self._last_token[rows] = tokens
        slots = fields.integers("penalty_slot").long()
        counted = slots >= 0
        self._output_counts[slots[counted], token_ids[counted]] += 1


def _choose(logits: torch.Tensor, fields: _Fields, positions: torch.Tensor) -> torch.Tensor:
    temperature, top_k = fields.floats("temperature"), fields.integers("top_k")
    drawn = fields.is_drawn().nonzero().flatten()
    if len(drawn) == 0:
        return reference.greedy(logits)
    # Far from 0 a tiny temperature would overflow; relative to the row's largest logit it only rules others out.
    chosen = logits[drawn]
    scaled = (chosen - chosen.amax(dim=-1, keepdim=True)) / temperature[drawn, None]
    filters = top_k[drawn], fields.floats("top_p")[drawn], fields.floats("min_p")[drawn]
    low, high, index = (fields.integers(name)[drawn].numpy() for name in ("seed_low", "seed_high", "sample_index"))
    keys = row_keys(low.view(np.uint32), high.view(np.uint32), index, positions[drawn].numpy())
    samples = reference.sample_gumbel(scaled, reference.filter_thresholds(scaled, *filters), keys)
    if len(drawn) == len(logits):
        return samples
    token_ids = reference.greedy(logits)
    token_ids[drawn] = samples
    return token_ids
