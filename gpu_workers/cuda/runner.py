"""One GPU's model, rows and cache, and what a step does with them. Queues work and never waits for it.

A step is a handful of launches on one stream: the plan's deltas and inputs, one graph (attention's task map, all
layers, for decode steps the logits too), the sampler. The tokens that it samples are the rows' last tokens when the
next step begins, so that step can be queued before any of them is known to the CPU. A step that also finds
log-probabilities of prompts runs without a graph, in the graphs' memory: it is wanted rarely and needs other outputs.

The rings are opened by `open`; `step(n)` queues the plan of sequence number n, and `finished(n)` is called from the
publisher's thread when its result is complete.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from engine_core.config.engine_config import EngineConfig
from engine_core.config.step_sizes import StepSize, StepSizes
from engine_core.ipc.ring import Ring
from engine_core.ipc.sampling_params import LOGPROBS
from engine_core.ipc.step import (
    NUM_BULK,
    StepPlan,
    StepResult,
    StepShape,
    plan_layout,
    result_layout,
)
from gpu_workers.cuda.device_queue import DeviceQueue
from gpu_workers.cuda.device_rows import DeviceRows
from gpu_workers.cuda.pinned_blocks import PinnedBlocks
from gpu_workers.cuda.prompt_scores import PromptScores
from gpu_workers.cuda.publisher import LaunchedStep, Publisher
from gpu_workers.cuda.sampler import DeviceSampler
from gpu_workers.cuda.step_graphs import StepGraphs
from gpu_workers.forward_context import ForwardContext
from gpu_workers.late_masks import MaskArrivals
from gpu_workers.loader import ProgressCallback
from gpu_workers.operations import load_operations, torch_dtype
from gpu_workers.served_model import ServedModel
from kernels import hopper_attention
from kernels.attention_tasks import plan_attention
from kernels.attention_workspace import make_attention_workspace
from kernels.cuda import StepAttention, is_fused
from kernels.skinny_tiles import MAX_ROWS


class CudaRunner:
    def __init__(self, config: EngineConfig, tp_rank: int = 0, queue: DeviceQueue | None = None) -> None:
        """Builds the model without weights. Raises `ConfigError` when this device or model is not supported."""
        self._config = config
        self._queue = queue or DeviceQueue(torch.device("cuda", torch.cuda.current_device()))
        self._operations = load_operations("cuda")
        # Partial sums of products whose inner dimension is split stay in float32.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._shape = StepShape(**config.step_capacities())
        self._model = ServedModel(config, self._operations, self._queue.device, tp_rank)
        # What all rows begin with lies in the same blocks of one table, as far back as every layer sees.
        self._shares_beginnings = config.layer_groups().windows == (0,)
        self._sizes = StepSizes(self._shape.max_num_seqs, self._shape.max_num_batched_tokens, self._shares_beginnings)
        self._graphs: StepGraphs | None = None
        self._host_blocks: PinnedBlocks | None = None

    def load(self, progress: ProgressCallback) -> None:
        """Fills the weights. Raises `ConfigError` when the checkpoint does not fit."""
        self._model.load(progress)

    @torch.inference_mode()
    def start(self, progress: ProgressCallback) -> None:
        """Allocates all that steps need, compiles or loads every kernel, captures the graphs."""
        config, shape, device = self._config, self._shape, self._queue.device
        model, max_num_seqs = config.model, shape.max_num_seqs
        layout = config.kv_layout()
        dtype = torch_dtype(config.dtype)
        self._rows = DeviceRows(shape, model.vocab_size, config.scheduler.max_num_penalty_rows, device)
        self._hidden = torch.zeros(max_num_seqs, model.hidden_size, dtype=dtype, device=device)
        self._logits = torch.zeros(max_num_seqs, model.vocab_size, dtype=torch.float32, device=device)
        raw = torch.zeros(config.scheduler.max_scored_rows, model.vocab_size, dtype=torch.float32, device=device)
        self._sampler = DeviceSampler(self._rows, shape, self._logits, raw)
        self._scores = PromptScores(self._model.module, shape, raw)
        cache_dtype, group_size = torch_dtype(layout.dtype), model.num_attention_heads // model.num_key_value_heads
        self._windows = config.layer_groups().windows
        use_wgmma = hopper_attention.supports(device, cache_dtype, layout.head_dim, group_size, layout.block_size)
        self._workspaces = {
            window: make_attention_workspace(
                max_num_seqs,
                shape.max_num_batched_tokens,
                layout.num_kv_heads,
                group_size,
                layout.head_dim,
                device,
                dtype=cache_dtype,
                sliding_window=window,
                use_wgmma=use_wgmma,
                max_shared_tokens=max_num_seqs if self._shares_beginnings else 0,
            )
            for window in dict.fromkeys(self._windows)
        }
        self._kv_cache = torch.zeros(layout.cache_shape(config.cache.num_blocks), dtype=cache_dtype, device=device)
        sizes = self._sizes.all()
        self._queue.synchronize()  # what was allocated here was filled on another stream
        self._queue.enter()
        self._warm_up(sizes)
        if not config.enforce_eager:
            torch.cuda.empty_cache()  # the graphs' own pool takes the place of what the warm-up used
            self._graphs = StepGraphs()
            self._graphs.capture(self._forward, sizes, progress)
        self._warm_up_scores(sizes[0])
        self._sampler.warm_up()
        self._queue.synchronize()
        if config.cache.num_host_blocks:
            self._host_blocks = PinnedBlocks(self._queue, self._kv_cache, config.cache.num_host_blocks)
            self._host_blocks.start()

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.numel() * self._kv_cache.element_size()

    @property
    def failure_fd(self) -> int | None:
        """Becomes readable when the publisher has failed; `check` then raises its reason."""
        return self._publisher.failure_fd

    def check(self) -> None:
        """Raises what the publisher failed with, if it did."""
        if self._publisher.failure is not None:
            raise self._publisher.failure

    @property
    def device_free_bytes(self) -> int:
        return self._queue.free_bytes()

    def open(
        self, plan_ring: Ring, result_ring: Ring, finished: Callable[[int], None], sleep: Callable[[int], None]
    ) -> None:
        """Takes the rings over; `finished(n)` is called in order, from another thread. `sleep` waits for late parts."""
        plans, results = plan_layout(self._shape), result_layout(self._shape)
        self._plan_ring = plan_ring
        self._plans = [StepPlan.over(plans, slot) for slot in plan_ring.slots]
        first, short, whole = (results.offsets[name] // 4 for name in ("num_sampled", "logprobs", "scores"))
        self._token_words, self._result_words = slice(first, short), slice(first, whole)
        rings = (plan_ring.buffer, result_ring.buffer)
        self._queue.open(_words(plan_ring), _words(result_ring), rings, plans.offsets["bulk"] // 4)
        self._arrivals = MaskArrivals(plan_ring, self._shape, sleep)
        self._queue.open_masks(
            [torch.from_numpy(late.masks) for late in self._arrivals.parts],
            [torch.from_numpy(plan.mask_rows) for plan in self._plans],
        )
        self._sampler.open(self._queue.device_results)
        self._scores.open(self._queue.device_results)
        self._publisher = Publisher(
            self._queue, [StepResult.over(results, slot) for slot in result_ring.slots], finished
        )

    def close(self) -> None:
        """Waits for what was queued."""
        self._publisher.close()
        if self._host_blocks is not None:
            self._host_blocks.close()
        self._queue.close()

    @torch.inference_mode()
    def step(self, sequence: int) -> None:
        """Queues one step. Raises what an earlier one failed with, if it did."""
        self.check()
        slot = self._plan_ring.slot_of(sequence)
        plan = self._plans[slot]
        num_seqs, num_tokens = plan.num_seqs, plan.num_tokens
        needs = self._rows.note(plan)
        num_scored = plan.num_scored
        size = self._size(num_tokens, num_seqs, plan.num_shared_keys, num_scored > 0)
        num_host_slots = 0
        if self._host_blocks is not None:
            self._host_blocks.copy(plan)
            num_host_slots = self._host_blocks.num_ready
        places = self._rows.scored_places
        num_bulk_words = places.end_in_bulk(num_scored) if num_scored else int(plan.header[NUM_BULK])
        staged = self._queue.begin(slot, num_bulk_words)
        self._rows.prepare(plan, staged, size.num_seqs, size.num_tokens)
        if num_scored:
            self._forward_and_score(size, *places.find(staged, num_scored), slot)
        elif self._graphs is None:
            self._forward(size)
        else:
            self._graphs.replay(size)
        if not size.is_decode:
            self._model.module.logits(self._hidden[:num_seqs], self._logits[:num_seqs])
        masks = None
        if plan.num_masks:
            # The device computes meanwhile; only what samples has to wait.
            self._queue.mark_forward(slot)
            skipped = self._arrivals.wait(sequence, plan, lambda: self._queue.forward_ended(slot))
            masks = self._queue.masks(slot, plan.num_masks)
            if len(skipped):
                self._rows.skip(skipped)
        self._sampler.sample(num_seqs, needs, slot, masks)
        words = self._result_words if needs & LOGPROBS else self._token_words
        if num_scored:
            words = slice(words.start, self._scores.end_word(num_scored))
        self._queue.end(slot, words)
        self._publisher.put(LaunchedStep(sequence, slot, plan.step_id, num_seqs, num_host_slots))

    def _size(self, num_tokens: int, num_seqs: int, num_shared_keys: int, has_scored: bool) -> StepSize:
        """What the step is padded to: a graph's size, or nothing where steps run eagerly."""
        is_shared = not has_scored and self._sizes.shares(num_tokens, num_seqs, num_shared_keys)
        if self._graphs is None:
            return StepSize(num_tokens, num_seqs, num_tokens == num_seqs and not has_scored, is_shared)
        return self._sizes.fit_mixed(num_tokens) if has_scored else self._sizes.fit(num_tokens, num_seqs, is_shared)

    def _forward(self, size: StepSize) -> None:
        """From the step's tensors to the logits of a decode step, or to the last hidden states of a mixed one."""
        hidden = self._last_hidden(size, self._rows.step.logits_indices[: size.num_seqs])
        if size.is_decode:
            self._model.module.logits(hidden, self._logits[: size.num_seqs])
        else:
            self._hidden[: size.num_seqs].copy_(hidden)

    def _forward_and_score(
        self, size: StepSize, indices: torch.Tensor, token_ids: torch.Tensor, slot: int | None
    ) -> None:
        """As `_forward`, of a mixed step; also finds how likely `token_ids` of prompts are behind the step's tokens
        `indices` (each int32 [num_scored])."""
        with nullcontext() if self._graphs is None else self._graphs.memory():
            samples = self._rows.step.logits_indices[: size.num_seqs]
            hidden = self._last_hidden(size, torch.cat((samples, indices)))
            self._hidden[: size.num_seqs].copy_(hidden[: size.num_seqs])
            self._scores.write(hidden[size.num_seqs :], token_ids, slot)

    def _last_hidden(self, size: StepSize, logits_indices: torch.Tensor) -> torch.Tensor:
        """The layers; the last hidden states of the tokens `logits_indices`."""
        step, num_seqs, num_tokens = self._rows.step, size.num_seqs, size.num_tokens
        # Mixed steps launch the long variant anyway, and need no graph of their own for this.
        has_shared = size.is_shared or (self._shares_beginnings and not size.is_decode)
        for workspace in self._workspaces.values():
            plan_attention(
                workspace,
                step.rows[:num_seqs],
                step.query_start_loc[: num_seqs + 1],
                step.seq_lens[:num_seqs],
                step.shared if has_shared else None,
            )
        attention = [
            StepAttention(
                workspace=self._workspaces[window],
                block_tables=self._rows.rows.block_tables[group],
                slot_mapping=step.slot_mapping[group, :num_tokens],
                has_long=not size.is_decode,
                has_shared=has_shared,
            )
            for group, window in enumerate(self._windows)
        ]
        context = ForwardContext(
            input_ids=step.input_ids[:num_tokens],
            positions=step.positions[:num_tokens],
            logits_indices=logits_indices,
            kv_cache=self._kv_cache,
            attention=attention,
            workspace=None,
        )
        return self._model.module.last_hidden(context)

    def _warm_up(self, sizes: list[StepSize]) -> None:
        """Runs every kernel once, on steps of nothing but padding: the largest of each kind (its memory is then there
        for all), the smallest, and all for whose products there may be a kernel of their own."""
        self._rows.warm_up()
        mixed = [size for size in sizes if not size.is_decode]
        decode = [size for size in sizes if size.is_decode and not size.is_shared]
        shared = [size for size in sizes if size.is_shared]
        skinny = [size for size in sizes if size.num_tokens <= MAX_ROWS]
        model, device, dtype = self._config.model, self._queue.device, torch_dtype(self._config.dtype)
        mlp = 2 * model.intermediate_size, model.hidden_size
        fused = [size for size in mixed if is_fused(size.num_tokens, *mlp, device, dtype)]
        for size in dict.fromkeys((mixed[0], mixed[-1], decode[0], decode[-1], *shared[:1], *fused[-1:], *skinny)):
            self._rows.pad(size.num_seqs, size.num_tokens)
            self._forward(size)
        for num_seqs in {1, self._shape.max_num_seqs}:
            self._model.module.logits(self._hidden[:num_seqs], self._logits[:num_seqs])

    def _warm_up_scores(self, size: StepSize) -> None:
        """A step of nothing but padding, all of whose tokens are scored."""
        self._rows.pad(size.num_seqs, size.num_tokens)
        nothing = torch.zeros(size.num_tokens, dtype=torch.int32, device=self._queue.device)
        self._forward_and_score(size, nothing, nothing, slot=None)


def _words(ring: Ring) -> list[torch.Tensor]:
    """A ring's slots as int32 tensors over the shared memory."""
    return [torch.frombuffer(slot, dtype=torch.int32) for slot in ring.slots]
