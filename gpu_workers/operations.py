"""The operations that a device must offer to layers, runner and sampler, and the module of `kernels` that offers them.

Formulas and shapes stand with the kernels and their references. What is `Any` here belongs to the device alone: only
its own operations make such objects and look inside them.
"""

import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from engine_core.config.errors import ConfigError
from engine_core.ipc.arrays import ArrayLayout
from kernels.step_tensors import Processor, RowTensors, StepTensors

_MODULES = {"cpu": "kernels.cpu", "cuda": "kernels.cuda"}


class StepAttention(Protocol):
    """Attention in the layers of a group in one step. Legend: T tokens, H KV heads, G query heads each, D head_dim."""

    def write(
        self,
        qkv: Tensor,  # [T, (H·G + 2·H)·D]
        rope_rows: Any,
        layer: int,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Normalizes and rotates, writes keys and values into the cache, returns the queries [T, H·G, D]."""

    def attend(
        self,
        query: Tensor,
        layer: int,
        scale: float,
        soft_cap: float = 0.0,
        alibi_slopes: Tensor | None = None,  # float32 [H·G]
        sinks: Tensor | None = None,  # float32 [H·G]
    ) -> Tensor:
        """Over the cache: [T, H·G·D]."""


class AttentionBackend(Protocol):
    """Attention of the layer groups with one cache layout and one sliding window. Rows and step have their places."""

    def __init__(
        self,
        kv_cache: Tensor,
        rows: RowTensors,
        step: StepTensors,
        group_size: int,
        sliding_window: int,
        max_shared_tokens: int,
    ) -> None:
        """Makes the workspace. `max_shared_tokens`: of steps whose rows' common beginning is read once for all."""

    @staticmethod
    def shares_beginnings(windows: tuple[int, ...]) -> bool:
        """Whether there are sizes of steps for such beginnings, given the window of each layer group."""

    def plan(
        self, groups: Sequence[int], num_seqs: int, num_tokens: int, is_decode: bool, has_shared: bool
    ) -> Sequence[StepAttention]:
        """Works out what all layers need in the step of that padded size; one for each of the layer groups."""


class Preparation(Protocol):
    """`StepPreparation` of `kernels/prepare_step.py`."""

    def apply_plan(self, slot: Tensor, num_inits: int, num_deltas: int) -> None: ...
    def prepare_inputs(
        self, slot: Tensor, num_seqs: int, num_tokens: int, num_padded_seqs: int, num_padded_tokens: int
    ) -> None: ...


class Tokens(Protocol):
    """`TokenSampler` of `kernels/sample.py`."""

    def sample(
        self, num_rows: int, sampled: Tensor, num_sampled: Tensor, any_drawn: bool, any_filtered: bool
    ) -> None: ...


class Operations(Protocol):
    """All that differs between devices beside the queue."""

    # Memory and weights
    def make_kv_cache(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor: ...
    def pack_weight(self, weight: Tensor) -> Any: ...
    def make_rope_table(self, table: Tensor, dtype: torch.dtype) -> Tensor: ...

    # Layers
    def embed(self, weight: Tensor, input_ids: Tensor) -> Tensor: ...
    def linear(self, x: Tensor, packed: Any, bias: Tensor | None) -> Tensor: ...
    def linear_act_and_mul(self, x: Tensor, packed: Any, bias: Tensor | None, activation: str) -> Tensor: ...
    def logits(self, hidden: Tensor, packed: Any, out: Tensor | None) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...
    def gather_add_rms_norm(
        self, x: Tensor, residual: Tensor, indices: Tensor, weight: Tensor, eps: float
    ) -> Tensor: ...
    def gather_rope(self, cos_sin: Tensor, positions: Tensor) -> Any: ...

    def product_kind(
        self, num_rows: int, num_out: int, num_in: int, device: torch.device, dtype: torch.dtype
    ) -> Hashable:
        """Only where kernels are compiled before they can serve."""

    # Sampling, on the logits of the scheduled rows
    @property
    def PROCESSORS(self) -> Mapping[str, Processor]: ...
    def apply_token_masks(self, logits: Tensor, mask_rows: Tensor, masks: Tensor) -> None: ...
    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, num_top: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    # What keeps the places of its tensors
    @property
    def PagedAttention(self) -> type[AttentionBackend]: ...
    @property
    def StepPreparation(self) -> Callable[..., Preparation]: ...
    @property
    def TokenSampler(self) -> Callable[..., Tokens]: ...


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


def make_tensors(layout: ArrayLayout, device: torch.device) -> dict[str, Tensor]:
    """The arrays of `layout`, each a tensor of zeros of its own."""
    return {
        name: torch.zeros(shape, dtype=torch_dtype(dtype.name), device=device)
        for name, (dtype, shape) in layout.fields.items()
    }
