"""How fast a work could be at best on a device of known bandwidth and matrix rate: the floor that shares refer to.

The work is laid out in steps as a scheduler with room for `max_num_seqs` requests and `max_num_batched_tokens` tokens
would do it: every running request decodes one token, prompts fill the rest in order, in chunks. What an earlier prompt
of the same work shares is not computed again. A step then takes

    max(W / bandwidth, F / rate)                        its products: weights are read once, or the matrix units bind
    + sum over decoding rows of  context * kv / bandwidth          their attention reads the keys and values
    + sum over prompt chunks of  max(context * kv / bandwidth, A / rate)

where W is the bytes of all weights but the embedding table (of which single rows are read), kv the bytes of one token's
keys and values in all layers, F = 2 * (parameters of the layers) * tokens + 2 * (LM head) * (tokens that are sampled)
and A = 4 * layers * query heads * head_dim * (pairs of a query with a key that it sees). Each request is taken to read
its own context, shared or not. Sampling, launches and everything else count as nothing.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.works import Work
from engine_core.config.kv_layout import KVLayout
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig


@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to do."""

    read_bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Costs:
    """What one token or step of a model costs, from its shape."""

    weight_bytes: int
    """Read in every step."""
    kv_bytes: int
    """Of one token, all layers."""
    layer_flops: int
    """Of one token's products with the weights of all layers."""
    head_flops: int
    """Of one sampled token's product with the LM head."""
    pair_flops: int
    """Of one query with one key and value, all layers and heads."""

    @classmethod
    def of(cls, model: ModelConfig, dtype: str) -> "Costs":
        """Of a dense model; norms and biases are too small to count."""
        q_size = model.num_attention_heads * model.head_dim
        kv_size = model.num_key_value_heads * model.head_dim
        attention = model.hidden_size * (q_size + 2 * kv_size) + q_size * model.hidden_size
        layers = model.num_hidden_layers * (attention + 3 * model.hidden_size * model.intermediate_size)
        table = model.vocab_size * model.hidden_size
        return cls(
            weight_bytes=(layers + table) * DTYPE_BYTES[dtype],
            kv_bytes=KVLayout.of(model, model.num_hidden_layers, 1, dtype).block_bytes,
            layer_flops=2 * layers,
            head_flops=2 * table,
            pair_flops=4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim,
        )


@dataclass
class Step:
    """What one step computes."""

    decode_contexts: list[int] = field(default_factory=list)
    """Tokens that each decoding row attends to, its own included."""
    chunks: list[tuple[int, int]] = field(default_factory=list)
    """Per prompt chunk: tokens before it, tokens in it."""
    num_sampled: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.decode_contexts) + sum(length for _, length in self.chunks)


@dataclass
class _Running:
    """A request under way: how many of its tokens are computed, and where prompt and output end."""

    num_computed: int
    prompt_end: int
    end: int
    """Prompt and output, less the last token, which is sampled and never computed."""


def plan_steps(work: Work, max_num_seqs: int, max_num_batched_tokens: int) -> Iterator[Step]:
    """The work as steps, see above."""
    waiting = deque(work.requests)
    running: list[_Running] = []
    num_admitted = 0
    while waiting or running:
        step = Step()
        budget = max_num_batched_tokens
        for request in running:
            if request.num_computed >= request.prompt_end:
                request.num_computed += 1
                step.decode_contexts.append(request.num_computed)
        budget -= len(step.decode_contexts)
        step.num_sampled = len(step.decode_contexts)
        for request in [request for request in running if request.num_computed < request.prompt_end]:
            budget -= _add_chunk(step, request, budget)
        while waiting and budget > 0 and len(running) < max_num_seqs:
            entry = waiting.popleft()
            length = len(entry.prompt)
            num_shared = work.num_shared_tokens if num_admitted >= work.num_groups else 0
            running.append(_Running(min(num_shared, length - 1), length, length + entry.num_output_tokens - 1))
            num_admitted += 1
            budget -= _add_chunk(step, running[-1], budget)
        yield step
        running = [request for request in running if request.num_computed < request.end]


def _add_chunk(step: Step, request: _Running, budget: int) -> int:
    """As much of the prompt as there is room for; returns how many tokens that is."""
    length = min(budget, request.prompt_end - request.num_computed)
    if length > 0:
        step.chunks.append((request.num_computed, length))
        request.num_computed += length
        step.num_sampled += request.num_computed == request.prompt_end
    return length


def step_seconds(step: Step, costs: Costs, ceilings: Ceilings) -> float:
    """The least time of one step, see above."""
    bandwidth, rate = ceilings.read_bytes_per_second, ceilings.flops_per_second
    flops = costs.layer_flops * step.num_tokens + costs.head_flops * step.num_sampled
    seconds = max(costs.weight_bytes / bandwidth, flops / rate)
    seconds += sum(step.decode_contexts) * costs.kv_bytes / bandwidth
    for before, length in step.chunks:
        pairs = length * before + length * (length + 1) // 2
        seconds += max((before + length) * costs.kv_bytes / bandwidth, pairs * costs.pair_flops / rate)
    return seconds


def work_floor(
    work: Work, costs: Costs, ceilings: Ceilings, max_num_seqs: int, max_num_batched_tokens: int
) -> list[float]:
    """Seconds of each step of the work; their sum is the floor of the whole."""
    return [step_seconds(step, costs, ceilings) for step in plan_steps(work, max_num_seqs, max_num_batched_tokens)]
