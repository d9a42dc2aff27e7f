"""Attention over the paged KV cache on a CPU: keys and values are gathered, then multiplied by torch's own products.

Legend: T = tokens of the step, N = scheduled sequences, H = KV heads, G = query heads per KV head, D = head_dim, B =
block_size, L = layers.

The KV cache is one tensor [num_blocks, L, 2, H, B, D]: block-major (all layers of a block lie together, so that a block
moves to host memory as one piece), and within a layer head-major: a head's B x D tile is contiguous, which is the row
that one `index_select` gathers here and the tile that a GPU kernel loads.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels.cpu.attention_plan import AttentionPlan, Workspace, causal_bias, plan_attention
from kernels.reference import rms_norm, rope
from kernels.step_tensors import RowTensors, StepTensors


def make_kv_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A cache of zeros in anonymous memory: a page is taken from the machine when a request first writes to it, whereas
    `torch.zeros` writes to all of them."""
    assert device.type == "cpu"
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


class PagedAttention:
    """Attention of the layer groups with one sliding window. Rows and step lie in the same tensors for good."""

    def __init__(
        self,
        kv_cache: torch.Tensor,
        rows: RowTensors,
        step: StepTensors,
        group_size: int,
        sliding_window: int = 0,
        max_shared_tokens: int = 0,
    ) -> None:
        """`kv_cache` [num_blocks, L, 2, H, B, D]; `group_size` G; a query sees `sliding_window` tokens, itself included
        (0: all)."""
        assert max_shared_tokens == 0, "what rows begin with is read row by row here"
        self._kv_cache = kv_cache
        self._rows, self._step = rows, step
        self._sliding_window = sliding_window
        self._workspace = Workspace()

    @staticmethod
    def shares_beginnings(windows: tuple[int, ...]) -> bool:
        """Whether keys and values that rows begin with are read once for all of them."""
        return False

    def plan(
        self, groups: Sequence[int], num_seqs: int, num_tokens: int, is_decode: bool, has_shared: bool
    ) -> "list[StepAttention]":
        """The attention of the step in each of the layer groups `groups`."""
        step = self._step
        rows, seq_lens = step.rows[:num_seqs].long(), step.seq_lens[:num_seqs]
        num_blocks = -(-int(seq_lens.max()) // self._kv_cache.shape[4])  # as wide as the longest row needs
        return [
            StepAttention(
                self._kv_cache,
                plan_attention(
                    self._kv_cache,
                    self._rows.block_tables[group, :, :num_blocks][rows],
                    step.slot_mapping[group, :num_tokens],
                    step.query_start_loc[: num_seqs + 1],
                    seq_lens,
                    self._sliding_window,
                ),
                self._workspace,
            )
            for group in groups
        ]


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What attention does in the layers of one group in one step."""

    kv_cache: torch.Tensor
    plan: AttentionPlan
    workspace: Workspace

    def write(
        self,
        qkv: torch.Tensor,
        rope_rows: tuple[torch.Tensor, torch.Tensor],
        layer: int,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """Normalizes (optional) and rotates queries and keys of `qkv` [T, (H·G + 2·H)·D], writes keys and values into
        the cache and returns the queries [T, H·G, D]."""
        num_heads, _, head_dim = self.kv_cache.shape[-3:]
        heads = qkv.view(len(qkv), -1, head_dim)  # [T, H·G + 2·H, D]
        num_q_heads = heads.shape[1] - 2 * num_heads
        qk, value = heads[:, :-num_heads], heads[:, -num_heads:]
        if q_norm is not None and k_norm is not None:
            query, key = rms_norm(qk[:, :num_q_heads], q_norm, eps), rms_norm(qk[:, num_q_heads:], k_norm, eps)
            qk = torch.cat((query, key), dim=1)
        qk = rope(qk, rope_rows)
        cache_rows, num_tokens = self.kv_cache.view(-1, head_dim), self.plan.num_tokens
        for place, written in enumerate((qk[:num_tokens, num_q_heads:], value[:num_tokens])):
            cache_rows.index_copy_(0, self.plan.write_rows[layer, place], written.reshape(-1, head_dim))
        return qk[:, :num_q_heads]

    def attend(
        self,
        query: torch.Tensor,
        layer: int,
        scale: float,
        soft_cap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """softmax(bias(scale · q·kᵀ)) · v for queries [T, H·G, D] of mixed rows over their blocks; returns [T, H·G·D].
        Options as in `reference_attention`: `soft_cap`; `alibi_slopes` and `sinks` float32 [H·G].

        The G query heads of a KV head are the rows of one matrix, so keys and values are read once and never repeated.
        """
        num_tokens, num_q_heads, head_dim = query.shape
        num_heads = self.kv_cache.shape[3]
        scores_of = _Scores(scale, soft_cap, *(_by_head(option, num_heads) for option in (alibi_slopes, sinks)))
        out = torch.empty(num_tokens, num_q_heads, head_dim, dtype=query.dtype)
        out[self.plan.num_tokens :] = 0
        if self.plan.decode:
            self._attend_decode(query, layer, scores_of, out)
        for seq in self.plan.prefill:
            key, value = self._gather(seq.gather_rows[layer], query.dtype).view(2, num_heads, -1, head_dim).unbind(0)
            key, value = key[:, : seq.num_keys], value[:, : seq.num_keys]  # [H, len, D]
            grouped = query[seq.start : seq.end].view(seq.end - seq.start, num_heads, -1, head_dim).permute(1, 2, 0, 3)
            result = _attend_prompt(grouped, key, value, seq.mask, scores_of)  # [H, G, query_len, D]
            out[seq.start : seq.end] = result.permute(2, 0, 1, 3).reshape(-1, num_q_heads, head_dim)
        return out.view(num_tokens, -1)

    def _attend_decode(self, query: torch.Tensor, layer: int, scores_of: "_Scores", out: torch.Tensor) -> None:
        """Writes what rows with one query token each find."""
        num_q_heads, head_dim = query.shape[1:]
        num_heads = self.kv_cache.shape[3]
        # One selection and one copy for all groups, and not by indexing, which takes twice as long.
        grouped = query.index_select(0, self.plan.decode_tokens).view(-1, num_q_heads // num_heads, head_dim)
        result, first = torch.empty_like(grouped), 0  # [rows·H, G, D]
        for group in self.plan.decode:
            last = first + group.num_rows * num_heads
            gathered = self._gather(group.gather_rows[layer], query.dtype)
            key, value = gathered.view(2, last - first, -1, head_dim).unbind(0)  # [n·H, len, D]
            if scores_of.is_plain:
                scores = torch.baddbmm(group.bias, grouped[first:last], key.transpose(1, 2), alpha=scores_of.scale)
                weights = torch.softmax(scores, dim=-1)
            else:
                scores = torch.bmm(grouped[first:last], key.transpose(1, 2))
                distance = torch.arange(key.shape[1]) - (group.lens - 1)  # [n, len]
                weights = scores_of.weights(
                    scores.view(group.num_rows, num_heads, -1, key.shape[1]),
                    group.bias.view(group.num_rows, num_heads, 1, -1),
                    distance[:, None, None],
                ).view_as(scores)
            torch.bmm(weights, value, out=result[first:last])
            first = last
        out.index_copy_(0, self.plan.decode_tokens, result.view(-1, num_q_heads, head_dim))

    def _gather(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`rows` of the cache as [num_blocks * L * 2 * H, B * D]; valid until the next call."""
        cache_rows = self.kv_cache.view(-1, self.kv_cache.shape[-2] * self.kv_cache.shape[-1])
        gathered = self.workspace.take(len(rows), cache_rows.shape[1], dtype)
        return torch.index_select(cache_rows, 0, rows, out=gathered)


@dataclass(frozen=True, slots=True)
class _Scores:
    """What becomes of the products of queries and keys."""

    scale: float
    soft_cap: float
    alibi_slopes: torch.Tensor | None  # [H, G, 1]
    sinks: torch.Tensor | None  # [H, G, 1]

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention computes it."""
        return not self.soft_cap and self.alibi_slopes is None and self.sinks is None

    def of_head(self, head: int) -> "_Scores":
        """Of one KV head, whose scores are [G, query_len, len]."""
        slopes, sinks = (
            None if option is None else option[head][:, None] for option in (self.alibi_slopes, self.sinks)
        )
        return _Scores(self.scale, self.soft_cap, slopes, sinks)

    def weights(self, scores: torch.Tensor, bias: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """Softmax over the last dimension of `scores`, which are changed, with a `bias` of 0 and -inf; `distance` is
        the key's position minus the query's."""
        scores.mul_(self.scale)
        if self.soft_cap:
            scores.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        if self.alibi_slopes is not None:
            scores.add_(self.alibi_slopes * distance)
        scores.add_(bias)
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1].contiguous()


def _by_head(option: torch.Tensor | None, num_heads: int) -> torch.Tensor | None:
    return None if option is None else option.view(num_heads, -1, 1)


def _attend_prompt(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scores_of: _Scores
) -> torch.Tensor:
    """Attention of query [H, G, n, D] over key and value [H, len, D], one head after the other where torch's own does
    not compute the scores, because scores lie in memory then."""
    num_heads, group_size, num_queries, head_dim = query.shape
    num_keys = key.shape[1]
    if scores_of.is_plain:
        shape = (num_heads, group_size, num_keys, head_dim)
        key, value = key[:, None].expand(shape), value[:, None].expand(shape)
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scores_of.scale)
    positions = torch.arange(num_keys - num_queries, num_keys)
    if mask is None:
        mask = causal_bias(positions, num_keys, query.dtype, 0)
    distance = torch.arange(num_keys) - positions[:, None]
    out = torch.empty_like(query)
    for head in range(num_heads):
        weights = scores_of.of_head(head).weights(query[head] @ key[head].transpose(0, 1), mask, distance)
        torch.matmul(weights, value[head, None], out=out[head])
    return out
