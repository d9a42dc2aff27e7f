"""A worker without a model: checks each plan as a real worker would rely on it, and samples what a function says."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engine_core.config.engine_config import SchedulerConfig
from engine_core.ipc.step import (
    NUM_BLOCK_DELTAS,
    NUM_HOST_SLOTS,
    NUM_ROW_INITS,
    NUM_SHARING_SEQS,
    RESULT_NUM_SEQS,
    RESULT_STEP_ID,
    StepPlan,
    StepResult,
    StepShape,
    plan_layout,
    result_layout,
)

UNWRITTEN = -1
Entry = tuple[int, tuple[int, ...]]
"""What a slot holds: the layer group that wrote it, and the tokens up to the one that it is for."""


class _Chunk(NamedTuple):
    """What a scheduled row computes."""

    row: int
    start: int
    tokens: tuple[int, ...]
    """The row's, from its first one on to the last of the chunk."""
    num_drafted: int
    num_accepted: int


def step_shape(
    config: SchedulerConfig,
    block_size: int,
    num_groups: int = 1,
    num_host_blocks: int = 0,
    num_speculative_tokens: int = 0,
) -> StepShape:
    return StepShape(
        num_speculative_tokens=num_speculative_tokens,
        num_groups=num_groups,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        block_size=block_size,
        num_host_blocks=num_host_blocks,
        num_mask_words=1,
    )


class FakeWorker:
    """Keeps the KV cache as plain token ids: what a slot holds is which token (and position) was computed into it.

    `sample(tokens)` gives the next token for a sequence. Drafts are right up to the number that a step accepts, then
    wrong. Running a plan asserts that every position a row attends to,
    through the window of each layer group, holds that row's own token, so a block written by two owners or reused too
    early is found at once.
    """

    def __init__(
        self,
        shape: StepShape,
        num_blocks: int,
        sample: Callable[[list[int]], int],
        windows: tuple[int, ...] = (0,),
    ) -> None:
        """`windows`: the sliding window of each group, 0 or at least 2."""
        assert len(windows) == shape.num_groups
        self.shape = shape
        self._windows = windows
        self._sample = sample
        rows, width = shape.max_num_seqs, shape.max_blocks_per_row
        self._tables = np.full((shape.num_groups, rows, width), UNWRITTEN)
        self._num_computed = np.zeros(rows, np.int64)
        self._last_token = np.full(rows, UNWRITTEN)
        self._cache: list[list[Entry | None]] = [[None] * shape.block_size for _ in range(num_blocks)]
        self._host: list[list[Entry | None] | None] = [None] * shape.num_host_blocks
        self._pending: deque[StepPlan] = deque()
        self._layout, self._result_layout = plan_layout(shape), result_layout(shape)

    def new_plan(self) -> StepPlan:
        return StepPlan.over(self._layout, bytearray(self._layout.num_bytes))

    def dispatch(self, plan: StepPlan) -> None:
        """Queues a plan as a ring does; the scheduler must not rely on its being run yet."""
        self._pending.append(plan)

    def num_computed(self, row: int) -> int:
        """Where the row's next step begins."""
        return int(self._num_computed[row])

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def run_next(
        self, is_late: Callable[[int], bool] = lambda mask: False, accepts: Callable[[int], int] = lambda index: 0
    ) -> StepResult:
        """Runs the oldest queued plan; `is_late(k)` says whether its mask k has not come in time, `accepts(i)` how many
        of its scheduled row i's drafts are right, if it has so many."""
        plan = self._pending.popleft()
        skipped = {int(plan.mask_rows[mask]) for mask in range(plan.num_masks) if is_late(mask)}
        self._copy(plan)
        self._apply(plan)
        result = StepResult.over(self._result_layout, bytearray(self._result_layout.num_bytes))
        result.header[RESULT_STEP_ID] = plan.step_id
        result.header[RESULT_NUM_SEQS] = plan.num_seqs
        result.header[NUM_HOST_SLOTS] = len(self._host)
        result.top_token_ids[:] = UNWRITTEN
        chunks = self._write_all(plan, accepts)
        self._score(plan, chunks, result)
        for index, (row, start, tokens, num_drafted, num_accepted) in enumerate(chunks):
            for group in range(self.shape.num_groups):
                assert self._read(group, row, start, len(tokens)) == tokens, "a slot holds another sequence's token"
            if index < plan.header[NUM_SHARING_SEQS]:
                assert plan.num_shared_keys <= start, "what is common to rows is not computed yet"
            if index in skipped:
                assert plan.samples[index]
                assert num_drafted == 0, "a mask is for one token"
                self._num_computed[row] -= 1
                self._last_token[row] = tokens[-1]
            elif plan.samples[index]:
                right = list(tokens[: len(tokens) - num_drafted + num_accepted])
                right.append(self._sample(right))
                self._last_token[row] = right[-1]
                self._num_computed[row] -= num_drafted - num_accepted
                result.num_sampled[index] = num_accepted + 1
                result.sampled[index, : num_accepted + 1] = right[-num_accepted - 1 :]
        return result

    def _score(self, plan: StepPlan, chunks: list[_Chunk], result: StepResult) -> None:
        """Says of each scored token minus itself as its log-probability, and the token before it as its rank."""
        given = [token for chunk in chunks for token in chunk.tokens[chunk.start :]]
        scores = result.scores[: plan.num_scored]
        scores["logprob"] = -plan.scored_token_ids[: plan.num_scored]
        scores["rank"] = [given[index] for index in plan.scored_indices[: plan.num_scored]]

    def _copy(self, plan: StepPlan) -> None:
        """Stores, then loads, as a worker whose copies of one kind run in any order."""
        stores = plan.stores[: plan.num_stores].tolist()
        loads = plan.loads[: plan.num_loads].tolist()
        for _, slot in stores:
            assert sum(slot == other for _, other in stores) == 1, "two stores write to one slot"
        for block, _ in loads:
            assert sum(block == other for other, _ in loads) == 1, "two loads write to one block"
        for block, slot in stores:
            assert None not in self._cache[block], "a block is stored that is not full"
            self._host[slot] = list(self._cache[block])
        for block, slot in loads:
            contents = self._host[slot]
            assert contents is not None, "a slot is loaded that was never stored"
            self._cache[block] = list(contents)

    def _apply(self, plan: StepPlan) -> None:
        for record in plan.row_inits[: plan.header[NUM_ROW_INITS]]:
            row = record["row"]
            self._tables[:, row] = UNWRITTEN
            self._num_computed[row] = record["num_computed_tokens"]
            self._last_token[row] = UNWRITTEN
        for group, row, index, block in plan.block_deltas[: plan.header[NUM_BLOCK_DELTAS]]:
            assert self._tables[group, row, index] == UNWRITTEN, "a block table entry was given twice"
            self._tables[group, row, index] = block

    def _write_all(self, plan: StepPlan, accepts: Callable[[int], int]) -> list[_Chunk]:
        """All rows' tokens go into the cache before any row reads (as every layer does)."""
        num_seqs, offset, chunks = plan.num_seqs, 0, []
        assert len(set(plan.rows[:num_seqs].tolist())) == num_seqs
        drafted = plan.num_drafted[:num_seqs].tolist() or [0] * num_seqs
        columns = (array[:num_seqs].tolist() for array in (plan.rows, plan.num_query_tokens, plan.num_given))
        for index, (row, count, given, num_drafted) in enumerate(zip(*columns, drafted, strict=True)):
            num_fed_back = count - given - num_drafted
            assert num_drafted <= self.shape.num_speculative_tokens
            assert num_fed_back in (0, 1)
            assert num_fed_back + given > 0
            fed_back = [int(self._last_token[row])] * num_fed_back
            assert UNWRITTEN not in fed_back
            tokens = fed_back + plan.token_ids[offset : offset + given].tolist()
            offset += given
            start = int(self._num_computed[row])
            prefix = self._read(0, row, start, start)
            num_accepted = min(num_drafted, accepts(index))
            for number in range(num_drafted):
                tokens.append(self._sample([*prefix, *tokens]) + (number >= num_accepted))
            for position, token in enumerate(tokens, start):
                prefix = (*prefix, token)
                for group in range(self.shape.num_groups):
                    block = self._tables[group, row, position // self.shape.block_size]
                    assert block != UNWRITTEN, "a token has no block"
                    self._cache[block][position % self.shape.block_size] = (group, prefix)
            self._num_computed[row] = start + count
            chunks.append(_Chunk(row, start, prefix, num_drafted, num_accepted))
        assert offset == plan.header[3]
        return chunks

    def _read(self, group: int, row: int, start: int, end: int) -> tuple[int, ...]:
        """The row's context up to `end` as the group's part of the cache holds it, by what token `start` and those
        after it see; every slot must continue the one before it."""
        window = self._windows[group]
        first = max(0, start - window + 1) if window else 0
        prefix: tuple[int, ...] | None = () if first == 0 else None
        for position in range(first, end):
            block = self._tables[group, row, position // self.shape.block_size]
            assert block != UNWRITTEN, "a token that is seen has no block"
            entry = self._cache[block][position % self.shape.block_size]
            assert entry is not None, "a slot is read that was never written"
            assert entry[0] == group, "a slot holds another layer group's token"
            assert prefix is None or entry[1][:-1] == prefix, "a slot holds another sequence's token"
            prefix = entry[1]
        assert prefix is not None
        assert len(prefix) == end
        return prefix
