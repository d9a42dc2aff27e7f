"""One GPU's model, rows and cache, and what a step does with them. Queues work and never waits for it.

A step is a handful of launches on one stream: the plan's deltas and inputs, one graph (attention's task map, all
layers, for decode steps the logits too), the sampler. The tokens that it samples are the rows' last tokens when the
next step begins, so that step can be queued before any of them is known to the CPU.

The rings are opened by `open`; `step(n)` queues the plan of sequence number n, and `finished(n)` is called from the
publisher's thread when its result is complete.
"""

from collections.abc import Callable

import torch

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import (
    NUM_BULK,
    LateMasks,
    StepPlan,
    StepResult,
    StepShape,
    late_layout,
    plan_layout,
    result_layout,
)
from gpu_workers.cuda.device_queue import DeviceQueue
from gpu_workers.cuda.device_rows import LOGPROBS, DeviceRows
from gpu_workers.cuda.pinned_blocks import PinnedBlocks
from gpu_workers.cuda.publisher import LaunchedStep, Publisher
from gpu_workers.cuda.sampler import DeviceSampler
from gpu_workers.cuda.step_graphs import StepGraphs
from gpu_workers.cuda.step_sizes import StepSize, StepSizes
from gpu_workers.forward_context import ForwardContext
from gpu_workers.loader import ProgressCallback
from gpu_workers.operations import load_operations, torch_dtype
from gpu_workers.served_model import ServedModel
from kernels import hopper_attention
from kernels.attention_tasks import plan_attention
from kernels.attention_workspace import make_attention_workspace
from kernels.cuda import StepAttention
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
        self._sizes = StepSizes(self._shape.max_num_seqs, self._shape.max_num_batched_tokens)
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
        cache_shape = self._model.kv_cache_shape
        dtype = torch_dtype(config.dtype)
        self._rows = DeviceRows(shape, model.vocab_size, config.scheduler.max_num_penalty_rows, device)
        self._hidden = torch.zeros(max_num_seqs, model.hidden_size, dtype=dtype, device=device)
        self._logits = torch.zeros(max_num_seqs, model.vocab_size, dtype=torch.float32, device=device)
        self._sampler = DeviceSampler(self._rows, shape, self._logits)
        cache_dtype, group_size = (
            torch_dtype(config.cache.dtype),
            model.num_attention_heads // model.num_key_value_heads,
        )
        self._windows = config.layer_groups().windows
        use_wgmma = hopper_attention.supports(
            device, cache_dtype, model.head_dim, group_size, cache_shape[4], not model.attn_logit_softcapping
        )
        self._workspaces = {
            window: make_attention_workspace(
                max_num_seqs,
                shape.max_num_batched_tokens,
                cache_shape[3],
                group_size,
                model.head_dim,
                device,
                dtype=cache_dtype,
                sliding_window=window,
                use_wgmma=use_wgmma,
            )
            for window in dict.fromkeys(self._windows)
        }
        self._kv_cache = torch.zeros(cache_shape, dtype=cache_dtype, device=device)
        sizes = self._sizes.all()
        self._queue.synchronize()  # what was allocated here was filled on another stream
        self._queue.enter()
        self._warm_up(sizes)
        if not config.enforce_eager:
            torch.cuda.empty_cache()  # the graphs' own pool takes the place of what the warm-up used
            self._graphs = StepGraphs()
            self._graphs.capture(self._forward, sizes, progress)
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
        self, plan_ring: Ring, result_ring: Ring, finished: Callable[[int], None], sleep: Callable[[], None]
    ) -> None:
        """Takes the rings over; `finished(n)` is called in order, from another thread. `sleep` waits for late parts."""
        plans, results = plan_layout(self._shape), result_layout(self._shape)
        self._plan_ring = plan_ring
        self._plans = [StepPlan.over(plans, slot) for slot in plan_ring.slots]
        first, short, whole = results.offsets["num_sampled"], results.offsets["logprobs"], results.num_bytes
        self._token_words, self._result_words = slice(first // 4, short // 4), slice(first // 4, whole // 4)
        rings = (plan_ring.buffer, result_ring.buffer)
        self._queue.open(_words(plan_ring), _words(result_ring), rings, plans.offsets["bulk"] // 4)
        late = late_layout(self._shape)
        self._queue.open_masks(
            [torch.from_numpy(LateMasks.over(late, slot).masks) for slot in plan_ring.late_slots],
            [torch.from_numpy(plan.mask_rows) for plan in self._plans],
        )
        self._sleep = sleep
        self._sampler.open(self._queue.device_results)
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
        size = self._size(num_tokens, num_seqs)
        num_host_slots = 0
        if self._host_blocks is not None:
            self._host_blocks.copy(plan)
            num_host_slots = self._host_blocks.num_ready
        staged = self._queue.begin(slot, int(plan.header[NUM_BULK]))
        self._rows.prepare(plan, staged, size.num_seqs, size.num_tokens)
        if self._graphs is None:
            self._forward(size)
        else:
            self._graphs.replay(size)
        if not size.is_decode:
            self._model.module.logits(self._hidden[:num_seqs], self._logits[:num_seqs])
        masks = None
        if plan.num_masks:
            # The device computes meanwhile; only what samples has to wait.
            self._plan_ring.wait_late(sequence, self._sleep)
            masks = self._queue.masks(slot, plan.num_masks)
        self._sampler.sample(num_seqs, needs, slot, masks)
        self._queue.end(slot, self._result_words if needs & LOGPROBS else self._token_words)
        self._publisher.put(LaunchedStep(sequence, slot, plan.step_id, num_seqs, num_host_slots))

    def _size(self, num_tokens: int, num_seqs: int) -> StepSize:
        """What the step is padded to: a graph's size, or nothing where steps run eagerly."""
        if self._graphs is None:
            return StepSize(num_tokens, num_seqs, num_tokens == num_seqs)
        return self._sizes.fit(num_tokens, num_seqs)

    def _forward(self, size: StepSize) -> None:
        """From the step's tensors to the logits of a decode step, or to the last hidden states of a mixed one."""
        step, num_seqs, num_tokens = self._rows.step, size.num_seqs, size.num_tokens
        for workspace in self._workspaces.values():
            plan_attention(
                workspace, step.rows[:num_seqs], step.query_start_loc[: num_seqs + 1], step.seq_lens[:num_seqs]
            )
        attention = [
            StepAttention(
                workspace=self._workspaces[window],
                block_tables=self._rows.rows.block_tables[group],
                slot_mapping=step.slot_mapping[group, :num_tokens],
                has_long=not size.is_decode,
            )
            for group, window in enumerate(self._windows)
        ]
        context = ForwardContext(
            input_ids=step.input_ids[:num_tokens],
            positions=step.positions[:num_tokens],
            logits_indices=step.logits_indices[:num_seqs],
            kv_cache=self._kv_cache,
            attention=attention,
            workspace=None,
        )
        hidden = self._model.module.last_hidden(context)
        if size.is_decode:
            self._model.module.logits(hidden, self._logits[:num_seqs])
        else:
            self._hidden[:num_seqs].copy_(hidden)

    def _warm_up(self, sizes: list[StepSize]) -> None:
        """Runs every kernel once, on steps of nothing but padding: the largest of each kind (its memory is then there
        for all), the smallest, and all for whose products there may be a kernel of their own."""
        self._rows.warm_up()
        mixed = [size for size in sizes if not size.is_decode]
        decode = [size for size in sizes if size.is_decode]
        skinny = [size for size in sizes if size.num_tokens <= MAX_ROWS]
        for size in dict.fromkeys((mixed[0], mixed[-1], decode[0], decode[-1], *skinny)):
            self._rows.pad(size.num_seqs, size.num_tokens)
            self._forward(size)
        for num_seqs in {1, self._shape.max_num_seqs}:
            self._model.module.logits(self._hidden[:num_seqs], self._logits[:num_seqs])


def _words(ring: Ring) -> list[torch.Tensor]:
    """A ring's slots as int32 tensors over the shared memory."""
    return [torch.frombuffer(slot, dtype=torch.int32) for slot in ring.slots]
