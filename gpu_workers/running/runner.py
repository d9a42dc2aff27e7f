"""One device's model, rows and cache, and what a step does with them. Launches work and never waits for it.

A step is a handful of launches: the plan's deltas and inputs, the layers (on a GPU one graph with attention's task map,
and for decode steps the logits), the sampler. The tokens that it samples are the rows' last tokens when the next step
begins, so that step can be launched before any of them is known to the CPU. A step that also finds log-probabilities of
prompts runs without a graph, in the graphs' memory: it is wanted rarely and needs other outputs.

Devices differ in two things alone: the queue (streams, events and graphs, or inline) and the operations.
"""

from collections.abc import Callable, Hashable
from contextlib import nullcontext

import torch

from engine_core.config.engine_config import EngineConfig, WorkerPlace
from engine_core.config.rank_share import share_of_rank
from engine_core.config.step_sizes import StepSize, StepSizes
from engine_core.ipc.ring import Ring
from engine_core.ipc.sampling_params import LOGPROBS
from engine_core.ipc.step import NUM_BULK, StepPlan, StepResult, StepShape, plan_layout, result_layout
from gpu_workers.forward_context import ForwardContext
from gpu_workers.loader import ProgressCallback
from gpu_workers.operations import StepAttention, load_operations, torch_dtype
from gpu_workers.running.host_blocks import HostBlocks
from gpu_workers.running.inline_queue import InlineQueue
from gpu_workers.running.late_masks import MaskArrivals
from gpu_workers.running.prompt_scores import PromptScores
from gpu_workers.running.publisher import LaunchedStep, Publisher
from gpu_workers.running.queue import Queue
from gpu_workers.running.rows import Rows
from gpu_workers.running.sampler import Sampler
from gpu_workers.running.step_graphs import StepGraphs
from gpu_workers.running.stream_queue import StreamQueue
from gpu_workers.served_model import ServedModel

_WARM_UP_TOKENS = 32
"""Of a step on a CPU: enough to start threads and libraries."""


class Runner:
    def __init__(self, config: EngineConfig, place: WorkerPlace, queue: Queue | None = None) -> None:
        """Builds the model without weights. Raises `ConfigError` when this device or model is not supported."""
        self._config, self._stage = config, place.stage
        self._queue = queue or make_queue(config.device, place.device)
        self._operations = load_operations(config.device)
        self._shape = StepShape(**config.step_capacities())
        self._model = ServedModel(config, self._operations, self._queue.device, place)
        self._windows = config.layer_groups().windows
        self._shares_beginnings = self._operations.PagedAttention.shares_beginnings(self._windows)
        self._sizes = StepSizes(self._shape.max_num_seqs, self._shape.max_num_batched_tokens, self._shares_beginnings)
        self._graphs: StepGraphs | None = None
        self._host_blocks: HostBlocks | None = None

    def load(self, progress: ProgressCallback) -> None:
        """Fills the weights. Raises `ConfigError` when the checkpoint does not fit."""
        self._model.load(progress)

    @torch.inference_mode()
    def start(self, progress: ProgressCallback) -> None:
        """Allocates all that steps need, compiles or loads every kernel, captures the graphs; reports these, or the
        steps that warm up."""
        config, shape, device = self._config, self._shape, self._queue.device
        model, max_num_seqs = config.model, shape.max_num_seqs
        share = share_of_rank(model, config.parallel.tensor_parallel_size)
        layout = config.kv_layout(self._stage)
        dtype = torch_dtype(config.dtype)
        self._rows = Rows(shape, model.vocab_size, config.scheduler.max_num_penalty_rows, self._operations, device)
        self._hidden = torch.zeros(max_num_seqs, model.hidden_size, dtype=dtype, device=device)
        self._logits = torch.zeros(max_num_seqs, model.vocab_size, dtype=torch.float32, device=device)
        raw = torch.zeros(config.scheduler.max_scored_rows, model.vocab_size, dtype=torch.float32, device=device)
        self._sampler = Sampler(self._rows, shape, self._operations, self._logits, raw)
        self._scores = PromptScores(self._model.module, shape, self._operations, raw)
        cache_shape = layout.cache_shape(config.cache.num_blocks)
        self._kv_cache = self._operations.make_kv_cache(cache_shape, torch_dtype(layout.dtype), device)
        self._attention = {
            window: self._operations.PagedAttention(
                self._kv_cache,
                self._rows.rows,
                self._rows.step,
                share.num_attention_heads // share.num_key_value_heads,
                window,
                max_num_seqs if self._shares_beginnings else 0,
            )
            for window in dict.fromkeys(self._windows)
        }
        self._queue.synchronize()  # what was allocated here was filled on another stream
        self._queue.enter()
        if self._queue.runs_inline:
            self._warm_up_inline(progress)
        else:
            self._warm_up(progress)
        self._queue.synchronize()
        if config.cache.num_host_blocks:
            self._host_blocks = HostBlocks(self._queue, self._kv_cache, config.cache.num_host_blocks)
            self._host_blocks.start()

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.numel() * self._kv_cache.element_size()

    @property
    def failure_fd(self) -> int:
        """Becomes readable when the publisher has failed; `check` then raises its reason."""
        return self._publisher.failure_fd

    def check(self) -> None:
        """Raises what the publisher failed with, if it did."""
        if self._publisher.failure is not None:
            raise self._publisher.failure

    @property
    def device_free_bytes(self) -> int:
        """What is left of the device's memory; 0 where that says nothing."""
        return self._queue.free_bytes()

    def open(
        self, plan_ring: Ring, result_ring: Ring, finished: Callable[[int], None], sleep: Callable[[int], None]
    ) -> None:
        """Takes the rings over: from now on there may be steps. `finished(n)` is called in order, from one thread, when
        the result of step n is written and its plan is needed no longer. `sleep(ms)` returns when a late part may have
        come, or after so many milliseconds."""
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
        """Waits for what was launched."""
        self._publisher.close()
        if self._host_blocks is not None:
            self._host_blocks.close()
        self._queue.close()

    @torch.inference_mode()
    def step(self, sequence: int) -> None:
        """Launches the plan with that sequence number. Raises what an earlier one failed with, if it did."""
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
        # Mixed steps launch the long variant anyway, and need no graph of their own for a shared beginning.
        has_shared = size.is_shared or (self._shares_beginnings and not size.is_decode)
        attention: dict[int, StepAttention] = {}
        for window, backend in self._attention.items():
            groups = [group for group, other in enumerate(self._windows) if other == window]
            planned = backend.plan(groups, size.num_seqs, size.num_tokens, size.is_decode, has_shared)
            attention.update(zip(groups, planned, strict=True))
        context = ForwardContext(
            input_ids=self._rows.step.input_ids[: size.num_tokens],
            positions=self._rows.step.positions[: size.num_tokens],
            logits_indices=logits_indices,
            attention=[attention[group] for group in range(len(self._windows))],
        )
        return self._model.module.last_hidden(context)

    def _warm_up(self, progress: ProgressCallback) -> None:
        """Runs every kernel once, on steps of nothing but padding: the largest of each kind (its memory is then there
        for all), the smallest, and one for each kernel that multiplies. Captures the graphs."""
        sizes = self._sizes.all()
        self._rows.warm_up()
        mixed = [size for size in sizes if not size.is_decode]
        decode = [size for size in sizes if size.is_decode and not size.is_shared]
        shared = [size for size in sizes if size.is_shared]
        products = {(size.is_decode, self._product_kind(size.num_tokens)): size for size in sizes}
        for size in dict.fromkeys((mixed[0], mixed[-1], decode[0], decode[-1], *shared[:1], *products.values())):
            self._rows.pad(size.num_seqs, size.num_tokens)
            self._forward(size)
        for num_seqs in {1, self._shape.max_num_seqs}:
            self._model.module.logits(self._hidden[:num_seqs], self._logits[:num_seqs])
        if not self._config.enforce_eager:
            torch.cuda.empty_cache()  # the graphs' own pool takes the place of what the warm-up used
            self._graphs = StepGraphs()
            self._graphs.capture(self._forward, sizes, progress)
        self._warm_up_scores(sizes[0])
        self._sampler.warm_up()

    def _product_kind(self, num_tokens: int) -> Hashable:
        """Steps of one kind multiply with the same kernels."""
        model, device, dtype = self._config.model, self._queue.device, torch_dtype(self._config.dtype)
        return self._operations.product_kind(num_tokens, 2 * model.intermediate_size, model.hidden_size, device, dtype)

    def _warm_up_inline(self, progress: ProgressCallback) -> None:
        """A prompt and a decode step of nothing but padding."""
        mixed = self._sizes.fit_mixed(min(_WARM_UP_TOKENS, self._shape.max_num_batched_tokens))
        steps = (mixed, self._sizes.fit(self._shape.max_num_seqs, self._shape.max_num_seqs))
        progress(0, len(steps))
        for done, size in enumerate(steps, start=1):
            self._rows.pad(size.num_seqs, size.num_tokens)
            self._forward(size)
            progress(done, len(steps))

    def _warm_up_scores(self, size: StepSize) -> None:
        """A step of nothing but padding, all of whose tokens are scored."""
        self._rows.pad(size.num_seqs, size.num_tokens)
        nothing = torch.zeros(size.num_tokens, dtype=torch.int32, device=self._queue.device)
        self._forward_and_score(size, nothing, nothing, slot=None)


def make_queue(device: str, index: int) -> Queue:
    """The queue of a device by its name, and its number where there are several."""
    if device == "cpu":
        return InlineQueue()
    # Partial sums of products whose inner dimension is split stay in float32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.cuda.set_device(index)
    return StreamQueue(torch.device("cuda", index))


def _words(ring: Ring) -> list[torch.Tensor]:
    """A ring's slots as int32 tensors over the shared memory."""
    return [torch.frombuffer(slot, dtype=torch.int32) for slot in ring.slots]
