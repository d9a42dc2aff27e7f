"""The operations that a device must offer to layers, runner and sampler, and the module of `kernels` that offers them.

Formulas and shapes stand with the references in `kernels`. What is `Any` here belongs to the device alone: only its own
operations make such objects and look inside them.
"""

import importlib
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from engine_core.config.errors import ConfigError

_MODULES = {"cpu": "kernels.cpu", "cuda": "kernels.cuda"}


class StepInputs(Protocol):
    """One step's tokens, one scheduled row after the other. Legend: T tokens, N scheduled rows."""

    @property
    def input_ids(self) -> Tensor: ...  # [T]
    @property
    def positions(self) -> Tensor: ...  # [T]
    @property
    def slot_mapping(self) -> Tensor: ...  # [num_groups, T]
    @property
    def query_start_loc(self) -> Tensor: ...  # [N + 1]
    @property
    def seq_lens(self) -> Tensor: ...  # [N]
    @property
    def block_tables(self) -> Tensor: ...  # [num_groups, N, blocks of the longest row]


class Operations(Protocol):
    """What layers need of a device. A GPU's runner and sampler launch their own kernels beside these."""

    def pack_weight(self, weight: Tensor) -> Any: ...
    def embed(self, weight: Tensor, input_ids: Tensor) -> Tensor: ...
    def linear(self, x: Tensor, packed: Any, bias: Tensor | None) -> Tensor: ...
    def linear_act_and_mul(self, x: Tensor, packed: Any, bias: Tensor | None, activation: str) -> Tensor: ...
    def logits(self, hidden: Tensor, packed: Any, out: Tensor | None) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...
    def gather_add_rms_norm(
        self, x: Tensor, residual: Tensor, indices: Tensor, weight: Tensor, eps: float
    ) -> Tensor: ...
    def make_rope_table(self, table: Tensor, dtype: torch.dtype) -> Tensor: ...
    def gather_rope(self, cos_sin: Tensor, positions: Tensor) -> Any: ...
    def rope_write_kv(
        self,
        qkv: Tensor,
        rope_rows: Any,
        kv_cache: Tensor,
        layer: int,
        plan: Any,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor: ...
    def paged_attention(
        self, query: Tensor, kv_cache: Tensor, layer: int, plan: Any, scale: float, workspace: Any, soft_cap: float
    ) -> Tensor: ...


class HostOperations(Operations, Protocol):
    """What the CPU's runner and sampler need beside them."""

    # Memory
    def make_kv_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...
    def make_workspace(self) -> Any: ...

    # Rows
    def plan_attention(
        self,
        kv_cache: Tensor,
        block_tables: Tensor,
        slot_mapping: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        sliding_window: int,
    ) -> Any: ...
    def apply_block_deltas(self, block_tables: Tensor, deltas: Tensor) -> None: ...
    def prepare_inputs(
        self,
        rows: Tensor,
        num_query_tokens: Tensor,
        num_given: Tensor,
        token_ids: Tensor,
        last_token: Tensor,
        num_computed_tokens: Tensor,
        block_tables: Tensor,
        block_size: int,
    ) -> StepInputs: ...

    # Sampling
    def make_finite(self, logits: Tensor) -> Tensor: ...
    def greedy(self, logits: Tensor) -> Tensor: ...
    def apply_penalties(
        self,
        logits: Tensor,
        prompt_mask: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
    ) -> None: ...
    def apply_token_masks(self, logits: Tensor, index: Tensor, masks: Tensor) -> None: ...
    def filter_thresholds(self, logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor: ...
    def row_keys(
        self, seed_low: np.ndarray, seed_high: np.ndarray, sample_index: np.ndarray, positions: np.ndarray
    ) -> Tensor: ...
    def sample_gumbel(self, logits: Tensor, threshold: Tensor, keys: Tensor) -> Tensor: ...
    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, num_top: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def load_host_operations() -> HostOperations:
    """The operations of the CPU, all of them."""
    return cast(HostOperations, load_operations("cpu"))


def load_operations(device: str) -> Operations:
    """The operations of `device`. Raises `ConfigError` where there are none."""
    if device not in _MODULES:
        raise ConfigError(f"There are no kernels for the device {device}; there are for: {', '.join(_MODULES)}.")
    return cast(Operations, importlib.import_module(_MODULES[device]))


def torch_dtype(name: str) -> torch.dtype:
    """A config's dtype name as torch knows it."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), name
    return dtype
