"""Attention over the paged KV cache on a GPU as runner and layers use it: one task map a step, one call a layer.

Legend: T = tokens of the step, H = KV heads, G = query heads per KV head, D = head_dim, B = block_size, L = layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels import hopper_attention
from kernels.attention_tasks import plan_attention
from kernels.attention_workspace import AttentionWorkspace, make_attention_workspace
from kernels.paged_attention import paged_attention
from kernels.rope_write_kv import rope_write_kv
from kernels.step_tensors import RowTensors, StepTensors


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
        (0: all). `max_shared_tokens`: of steps whose rows' common beginning is attended to once for all."""
        _, _, _, num_heads, block_size, head_dim = kv_cache.shape
        self._kv_cache = kv_cache
        self._rows, self._step = rows, step
        self._workspace = make_attention_workspace(
            len(step.rows),
            len(step.input_ids),
            num_heads,
            group_size,
            head_dim,
            kv_cache.device,
            dtype=kv_cache.dtype,
            sliding_window=sliding_window,
            use_wgmma=hopper_attention.supports(kv_cache.device, kv_cache.dtype, head_dim, group_size, block_size),
            max_shared_tokens=max_shared_tokens,
        )

    @staticmethod
    def shares_beginnings(windows: tuple[int, ...]) -> bool:
        """What all rows begin with lies in the same blocks of one table, as far back as every layer sees."""
        return windows == (0,)

    def plan(
        self, groups: Sequence[int], num_seqs: int, num_tokens: int, is_decode: bool, has_shared: bool
    ) -> "list[StepAttention]":
        """Launches the task map of a padded step for the layer groups `groups`. `is_decode`: one token a sequence."""
        step = self._step
        plan_attention(
            self._workspace,
            step.rows[:num_seqs],
            step.query_start_loc[: num_seqs + 1],
            step.seq_lens[:num_seqs],
            step.shared if has_shared else None,
        )
        return [
            StepAttention(
                kv_cache=self._kv_cache,
                workspace=self._workspace,
                block_tables=self._rows.block_tables[group],
                slot_mapping=step.slot_mapping[group, :num_tokens],
                has_long=not is_decode,
                has_shared=has_shared,
            )
            for group in groups
        ]


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What attention does in the layers of one group in one step, whose task map lies in the workspace."""

    kv_cache: torch.Tensor
    workspace: AttentionWorkspace
    block_tables: torch.Tensor  # int32 [max_num_seqs, max_blocks], by row
    slot_mapping: torch.Tensor  # int32 [T]; -1: nothing is written
    has_long: bool
    """Whether some sequence may have more query tokens than the short variant takes."""
    has_shared: bool
    """Whether the task map has the rows' common beginning apart."""

    def write(
        self,
        qkv: torch.Tensor,
        rope_rows: tuple[torch.Tensor, torch.Tensor],
        layer: int,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """`rope_write_kv`; the queries [T, H·G, D] are a view into `qkv`, which is overwritten."""
        cos_sin, positions = rope_rows
        return rope_write_kv(qkv, cos_sin, positions, self.slot_mapping, self.kv_cache, layer, q_norm, k_norm, eps)

    def attend(
        self,
        query: torch.Tensor,
        layer: int,
        scale: float,
        soft_cap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`paged_attention` of queries [T, H·G, D]: [T, H·G·D]."""
        return paged_attention(
            query,
            self.kv_cache,
            layer,
            self.workspace,
            self.block_tables,
            scale,
            has_long=self.has_long,
            has_shared=self.has_shared,
            soft_cap=soft_cap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
        )
