"""What each block of a row's logits can contribute, in one pass: its largest logit, and a bound on a draw's scores.

    maxima[i, b] = max(logits[i, block b])
    bounds[i, b] = max over block b of logit / (temperature · DEPTH_UNIT) - depth(row key, token id)

From these `sample` knows in which one or two of a row's blocks the winner must be, and looks at those alone: noise is
at most MOST_NOISE_ABOVE - depth · DEPTH_UNIT (`sampling_random.depth`), so no score of a block is above

    bounds[i, b] · DEPTH_UNIT - row maximum / temperature + MOST_NOISE_ABOVE    (`bound_scores`, with rounding's margin)

The last block ends with the row and overlaps the one before, so that no lane is ever masked. Where a filter has left a
threshold, blocks below it are not even read, and tokens that are surely below count for nothing.

NaN is ignored and a block's maximum is kept between ±LARGEST (`make_finite` of the references), except that a finite
logit may be larger; so a block of what was ruled out counts as -LARGEST too: an upper bound all the same.

Traffic: 4·V bytes a row, read once. A bound takes about 16 instructions a token, 11 of them on the pipe that does
integers at half rate: 256 rows of 151,936 tokens are 28 us of that pipe at 1.8 GHz on 132 multiprocessors, beside 34 us
of memory at 4.5 TB/s. A program is one warp, so that its reductions need no barrier; 64 registers let 32 of them share
a multiprocessor, which has 128 KB in flight then. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.launch import Launch, bind
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import LARGEST, load_float
from kernels.sampling_random import DEPTH_UNIT, MOST_NOISE_ABOVE, depth, row_key
from kernels.step_tensors import SampledRows

_MOST_TOKENS = 1024
"""Of a block: each lane of a warp has 32, eight loads of 16 bytes in flight."""
_MOST_PROGRAMS = 132 * 30
"""What a Hopper GPU holds at once, nearly: more would wait for a second round, which is seldom a full one."""
_ROUNDING = tl.constexpr(2e-6)
"""Share of its terms by which a bound or a threshold may be wrong: some ten roundings of 2^-24 and a division."""
_NO_TOKEN = tl.constexpr(-1e38)
"""The bound of a block without a token that may be drawn."""
_LOWEST = tl.constexpr(-3e38)
"""Below every bound, and above -inf, which says that a block is done with."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a row of logits is cut; depends on the vocabulary alone."""

    tokens: int
    """Tokens of a block, a power of two and at most `vocab_size`."""
    count: int

    @classmethod
    def of(cls, vocab_size: int) -> "Blocks":
        tokens = min(_MOST_TOKENS, 1 << (vocab_size.bit_length() - 1))
        return cls(tokens, triton.cdiv(vocab_size, tokens))

    def constants(self) -> dict[str, int]:
        """What the kernels want to know."""
        return {"num_blocks": self.count, "BLOCK": self.tokens, "LANES": int(triton.next_power_of_2(self.count))}

    def programs(self, num_rows: int) -> tuple[int, int]:
        """(programs of a row, blocks of a program), such that all rows' programs run at once."""
        blocks = triton.cdiv(num_rows * self.count, _MOST_PROGRAMS)
        return triton.cdiv(self.count, blocks), blocks


@triton.jit
def block_start(block, vocab_size, BLOCK: tl.constexpr):
    """The first token of a block."""
    return tl.minimum(block * BLOCK, vocab_size - BLOCK)


@triton.jit
def is_drawn(record_ptr, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr):
    """Whether a row is not greedy."""
    # The integers come first: a truth value that Triton's interpreter broadcasts takes its first operand's type.
    return (tl.load(record_ptr + TOP_K) != 1) & (load_float(record_ptr, TEMPERATURE) > 0)


@triton.jit
def load_row_maximum(maxima_ptr, num_blocks, LANES: tl.constexpr):
    """A row's largest logit from its blocks' ones at `maxima_ptr`."""
    blocks = tl.arange(0, LANES)
    return tl.max(tl.load(maxima_ptr + blocks, mask=blocks < num_blocks, other=float("-inf")), axis=0)


@triton.jit
def bound_scores(bounds, row_max, temperature):
    """What no score (logit - row_max) / temperature + noise in blocks of these `bounds` exceeds; never -inf. As high as
    can be where a bound says nothing: in rows without a number that a model means, or when something overflowed."""
    terms, shift = bounds * DEPTH_UNIT, row_max / temperature
    upper = terms - shift + MOST_NOISE_ABOVE + _ROUNDING * (tl.abs(terms) + tl.abs(shift) + MOST_NOISE_ABOVE)
    upper = tl.where(upper != upper, float("inf"), upper)
    upper = tl.where(row_max <= -LARGEST, float("inf"), upper)
    return tl.where(upper > _LOWEST, upper, _LOWEST)


@triton.jit
def least_logit(row_max, threshold, temperature):
    """A logit below which no scaled one, (logit - row_max) / temperature, reaches `threshold`."""
    reach = threshold * temperature
    return row_max + reach - _ROUNDING * (tl.abs(row_max) + tl.abs(reach))


@triton.jit
def _store_maximum(maxima_ptr, logits):
    value = tl.max(logits, axis=0)
    value = tl.where(value > -LARGEST, value, -LARGEST)  # NaN, which is not larger, too
    tl.store(maxima_ptr, tl.where(value == float("inf"), LARGEST, value))


@triton.jit
def _store_bound(bounds_ptr, values):
    value = tl.max(values, axis=0)
    tl.store(bounds_ptr, tl.where(value > _NO_TOKEN, value, _NO_TOKEN))


@triton.jit(do_not_specialize=["num_blocks", "blocks_per_program"])
def _block_maxima_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    samples_ptr,  # int32 [N]
    maxima_ptr,  # [S, num_blocks]
    logits_stride,
    vocab_size,
    num_blocks,
    blocks_per_program,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    first, i = tl.program_id(0) * blocks_per_program, tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride + tl.arange(0, BLOCK)
    for block in range(first, tl.minimum(first + blocks_per_program, num_blocks)):
        logits = tl.load(row_ptr + block_start(block, vocab_size, BLOCK))
        _store_maximum(maxima_ptr + i * num_blocks + block, logits)


@triton.jit(do_not_specialize=["num_blocks", "blocks_per_program"])
def _block_bounds_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    seq_lens_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    thresholds_ptr,  # [N]: read, and so are the maxima; or None: all tokens may be drawn, and the maxima are written
    maxima_ptr,  # [S, num_blocks]
    bounds_ptr,  # [S, num_blocks]; of greedy rows untouched
    logits_stride,
    fields_stride,
    vocab_size,
    num_blocks,
    blocks_per_program,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    SEED_LOW: tl.constexpr,
    SEED_HIGH: tl.constexpr,
    SAMPLE_INDEX: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    first, i = tl.program_id(0) * blocks_per_program, tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    row_maxima_ptr, row_bounds_ptr = maxima_ptr + i * num_blocks, bounds_ptr + i * num_blocks
    last = tl.minimum(first + blocks_per_program, num_blocks)
    if is_drawn(record_ptr, TEMPERATURE, TOP_K):
        key0, key1 = row_key(
            tl.load(record_ptr + SEED_LOW),
            tl.load(record_ptr + SEED_HIGH),
            tl.load(record_ptr + SAMPLE_INDEX),
            tl.load(seq_lens_ptr + i),
        )
        temperature = load_float(record_ptr, TEMPERATURE)
        scale = 1.0 / temperature / DEPTH_UNIT
        if thresholds_ptr is None:
            for block in range(first, last):
                token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
                logits = tl.load(row_ptr + token_ids)
                _store_maximum(row_maxima_ptr + block, logits)
                _store_bound(row_bounds_ptr + block, logits * scale - depth(key0, key1, token_ids))
        else:
            row_max = load_row_maximum(row_maxima_ptr, num_blocks, LANES)
            least = least_logit(row_max, tl.load(thresholds_ptr + i), temperature)
            for block in range(first, last):
                if tl.load(row_maxima_ptr + block) < least:
                    tl.store(row_bounds_ptr + block, _NO_TOKEN)
                else:
                    token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
                    logits = tl.load(row_ptr + token_ids)
                    values = logits * scale - depth(key0, key1, token_ids)
                    _store_bound(row_bounds_ptr + block, tl.where(logits < least, _NO_TOKEN, values))
    else:
        if thresholds_ptr is None:
            for block in range(first, last):
                token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
                _store_maximum(row_maxima_ptr + block, tl.load(row_ptr + token_ids))


class BlockBounds:
    """Finds the maxima and bounds of steps whose inputs always lie in the same tensors."""

    def __init__(self, logits: torch.Tensor, step: SampledRows, thresholds: torch.Tensor) -> None:
        """All at full capacity: `logits` float32 [S, V], rows may lie apart; `step` of S rows; `thresholds` float32 [S]
        on scaled logits, for `find_filtered`."""
        step.check_logits(logits)
        capacity, vocab_size = logits.shape
        self._blocks = Blocks.of(vocab_size)
        shape = capacity, self._blocks.count
        self.maxima = torch.zeros(shape, dtype=torch.float32, device=logits.device)  # [S, B]
        self.bounds = torch.zeros(shape, dtype=torch.float32, device=logits.device)  # [S, B]
        arguments = {
            "logits_ptr": logits,
            "samples_ptr": step.samples,
            "maxima_ptr": self.maxima,
            "logits_stride": logits.stride(0),
            "vocab_size": vocab_size,
            "num_blocks": self._blocks.count,
            "blocks_per_program": 1,
            "BLOCK": self._blocks.tokens,
        }
        # One of the first two begins the sampling, behind a graph or a product of cuBLAS.
        varying = ("blocks_per_program",)
        self._find_maxima = bind(_block_maxima_kernel, arguments, varying, num_warps=1)
        arguments |= {
            "rows_ptr": step.rows,
            "seq_lens_ptr": step.seq_lens,
            "fields_ptr": step.fields,
            "bounds_ptr": self.bounds,
            "fields_stride": step.fields.stride(0),
            **self._blocks.constants(),
            **step.constants("temperature", "top_k", "seed_low", "seed_high", "sample_index"),
        }
        self._find = bind(_block_bounds_kernel, {**arguments, "thresholds_ptr": None}, varying, num_warps=1)
        arguments["thresholds_ptr"] = thresholds
        self._find_filtered = bind(_block_bounds_kernel, arguments, varying, num_warps=1, overlaps=True)

    def find_maxima(self, num_rows: int) -> None:
        """The maxima of the step's first `num_rows` rows, of those that sample."""
        self._launch(self._find_maxima, num_rows)

    def find(self, num_rows: int) -> None:
        """The maxima, and of rows that are not greedy the bounds, of all tokens."""
        self._launch(self._find, num_rows)

    def find_filtered(self, num_rows: int) -> None:
        """The bounds of rows that are not greedy, of tokens that reach their thresholds; the maxima must be there."""
        self._launch(self._find_filtered, num_rows)

    def _launch(self, launch: Launch, num_rows: int) -> None:
        programs, blocks = self._blocks.programs(num_rows)
        launch(programs, num_rows, blocks)
