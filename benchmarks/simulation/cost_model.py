"""How long a step takes on a GPU, from what its plan says.

    step = overhead of step and layers (more of it where the library computes the products)
         + sum over matrices of  (read^3 + compute^3)^(1/3)       read    = weight / (share x bandwidth)
                                                                  compute = 2 x weight's elements x tokens / rate
         + norms, RoPE and activation: bytes moved / copy bandwidth
         + decode attention: keys and values of all contexts / (share x bandwidth), those that several sequences share
           once from memory and else from the cache; keys with which all of them begin, where a GPU attends to them
           apart: operations of the pairs / rate of prefill attention
         + per prompt chunk: max(keys and values / bandwidth, its pairs' operations / rate of prefill attention)
           (of both, in layers with a sliding window, what lies within it)
         + logits: bytes moved by the sampler / copy bandwidth

Tokens are those of the graph that the worker would run, padding included. A product near the knee of its roofline
reaches neither side of it, which the third power stands for. Nothing overlaps but what the shares contain.
"""

from functools import cache, partial

import numpy as np

from benchmarks.simulation.gpus import Gpu
from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.kv_layout import KVLayout
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig
from engine_core.config.step_sizes import StepSizes
from engine_core.planning.model_memory import head_sizes

_KNEE = 3.0
_MAX_NARROW_TOKENS = 32
"""Products of more rows are the library's (`kernels/skinny_linear.py`)."""
_LOGIT_BYTES = 4
_LOGIT_PASSES = 3
"""The product writes the logits; the sampler reads them, and once more where it draws."""


class CostModel:
    """Seconds of steps of one model on one GPU."""

    def __init__(self, model: ModelConfig, dtype: str, scheduler: SchedulerConfig, gpu: Gpu) -> None:
        hidden, inner = model.hidden_size, model.intermediate_size
        q_size, kv_size = head_sizes(model)
        qkv_size = q_size + 2 * kv_size
        layer = [hidden * qkv_size, q_size * hidden, hidden * 2 * inner, inner * hidden]
        self._gpu = gpu
        self._dtype_bytes = DTYPE_BYTES[dtype]
        self._num_layers = model.num_hidden_layers
        self._layer_matrices = np.array(layer, np.float64)
        self._head_matrix = np.array([model.vocab_size * hidden], np.float64)
        self._vocab_size = model.vocab_size
        # Two norms read and write the residual and their input, RoPE reads and writes all heads, the activation reads
        # two and writes one.
        moved = 2 * 4 * hidden + 2 * qkv_size + 3 * inner
        self._moved_bytes = model.num_hidden_layers * moved * self._dtype_bytes
        self._layer_kv_bytes = KVLayout.of(model, 1, 1, dtype).token_bytes
        self._pair_flops = 4 * q_size  # of a layer
        num_sliding = len(model.sliding_layers)
        self._kinds = [(model.num_hidden_layers - num_sliding, np.inf), (num_sliding, model.sliding_window)]
        """How many layers see so many tokens."""
        self._sizes = StepSizes(scheduler.max_num_seqs, scheduler.max_num_batched_tokens, shares_beginnings=True)
        # Sizes and numbers of samples come again and again.
        self._of_layer = cache(partial(self._products, self._layer_matrices))
        self._of_head = cache(partial(self._products, self._head_matrix))

    def step_seconds(
        self,
        ends: np.ndarray,
        counts: np.ndarray,
        num_sampled: int,
        distinct: float = 1.0,
        num_shared_keys: int = 0,
        num_sharing: int = 0,
    ) -> float:
        """Of a step that computes the last `counts` of `ends` tokens of its sequences (each int [num_seqs]).
        `distinct` is the share of the sequences' blocks that is left when each is counted once; the first
        `num_sharing` sequences begin with the same `num_shared_keys`, as a plan says it."""
        gpu = self._gpu
        num_tokens = self._sizes.fit(int(counts.sum()), len(counts)).num_tokens
        is_narrow = num_tokens <= _MAX_NARROW_TOKENS
        seconds = gpu.step_seconds + self._num_layers * (gpu.layer_seconds if is_narrow else gpu.wide_layer_seconds)
        seconds += self._num_layers * self._of_layer(num_tokens)
        seconds += self._of_head(num_sampled) if num_sampled else 0.0
        seconds += num_tokens * self._moved_bytes / gpu.copy_bytes_per_second
        seconds += num_sampled * self._vocab_size * _LOGIT_BYTES * _LOGIT_PASSES / gpu.copy_bytes_per_second
        ends = ends.astype(np.float64)
        is_mixed = counts.sum() > len(counts)
        if num_shared_keys and (is_mixed or self._sizes.shares(len(counts), len(counts), num_shared_keys)):
            flops = num_sharing * num_shared_keys * self._num_layers * self._pair_flops
            seconds += flops / gpu.prefill_attention_flops
            ends[:num_sharing] -= num_shared_keys
            distinct = 1.0  # what is left is each row's own
        return seconds + self._attention(ends, counts.astype(np.float64), distinct)

    def _products(self, matrices: np.ndarray, num_tokens: int) -> float:
        gpu = self._gpu
        read = matrices * self._dtype_bytes / (gpu.weight_read_share * gpu.read_bytes_per_second)
        compute = 2 * matrices * num_tokens / gpu.flops_per_second
        return float(((read**_KNEE + compute**_KNEE) ** (1 / _KNEE)).sum())

    def _attention(self, ends: np.ndarray, counts: np.ndarray, distinct: float) -> float:
        gpu, is_decode = self._gpu, counts == 1
        kv_bytes = self._layer_kv_bytes * sum(
            num_layers * np.minimum(ends, window - 1 + counts) for num_layers, window in self._kinds if num_layers
        )
        seconds_a_byte = distinct / gpu.read_bytes_per_second + (1 - distinct) / gpu.cached_read_bytes_per_second
        seconds_a_byte /= gpu.decode_attention_share
        if is_decode.all():
            return float(kv_bytes.sum()) * seconds_a_byte
        pairs = sum(num_layers * num_pairs(ends, counts, window) for num_layers, window in self._kinds if num_layers)
        chunks = np.maximum(
            kv_bytes / gpu.read_bytes_per_second, pairs * self._pair_flops / gpu.prefill_attention_flops
        )
        return float(kv_bytes[is_decode].sum()) * seconds_a_byte + float(chunks[~is_decode].sum())

    def copy_seconds(self, num_blocks: int, block_bytes: int) -> float:
        """Of blocks between the KV cache and host memory, one direction."""
        return num_blocks * block_bytes / self._gpu.host_bytes_per_second

    def core_seconds(self, num_seqs: int) -> float:
        """CPU time of the engine core for a step, planning and update together, but for its starts."""
        return self._gpu.core_step_seconds + num_seqs * self._gpu.core_row_seconds

    @property
    def start_seconds(self) -> float:
        """CPU time of the engine core for each request that a step starts."""
        return self._gpu.core_start_seconds

    @property
    def launch_seconds(self) -> float:
        return self._gpu.launch_seconds


def num_pairs(ends: np.ndarray, counts: np.ndarray, window: float) -> np.ndarray:
    """Of the last `counts` of `ends` tokens with the keys that each sees, itself and up to `window` - 1 before it."""
    before = ends - counts
    num_growing = np.clip(window - before, 0, counts)  # tokens that see everything before them
    growing = num_growing * before + num_growing * (num_growing + 1) / 2
    return growing + np.where(num_growing < counts, counts - num_growing, 0) * np.minimum(window, ends)
