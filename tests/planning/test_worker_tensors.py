"""What the parts of a worker allocate against what the memory plan counts for them."""

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.kernels.device import DEVICE  # isort: skip  # before any kernel is imported

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import layer_groups
from engine_core.config.model_config import DTYPE_BYTES, load_model_config
from engine_core.ipc.arrays import ALIGNMENT
from engine_core.ipc.row_fields import DEFAULT_ROW, needs_of
from engine_core.ipc.sampling_params import MAX_LOGPROBS
from engine_core.ipc.step import StepShape, plan_layout, result_layout
from engine_core.ipc.worker_tensors import input_layout, penalty_layout, row_layout
from engine_core.planning.model_memory import packed_bytes
from engine_core.planning.worker_memory import (
    PRODUCT_BUFFER_BYTES,
    attention_layout,
    sampler_scratch_bytes,
    worker_memory,
)
from gpu_workers.layers.rotary import RotaryEmbedding
from gpu_workers.operations import load_operations, torch_dtype
from gpu_workers.running.prompt_scores import PromptScores
from gpu_workers.running.rows import Rows
from gpu_workers.running.sampler import Sampler
from kernels import attention_workspace
from kernels.attention_backend import PagedAttention
from kernels.attention_workspace import LONG_TILES, WGMMA_TILES, make_attention_workspace
from kernels.skinny_tiles import make_skinny_workspace
from kernels.token_logprobs import token_logprobs
from tests.config.models import make_model_folder
from tests.gpu_workers.test_layers import BUILD

HOPPER_SMS = 132
SHAPE = StepShape(
    max_num_seqs=2,
    max_num_batched_tokens=40,
    max_model_len=100,
    block_size=16,
    num_groups=2,
    num_mask_words=3,
    num_host_blocks=9,
)


class Allocations(TorchDispatchMode):
    """Counts what is allocated inside, given back or not."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.zeros, torch.ops.aten.empty):
            self.sizes.append(result.nbytes)
        return result

    @property
    def padded_bytes(self) -> int:
        """With the padding that layouts give each tensor."""
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in self.sizes)


def test_rows_and_inputs_are_what_is_counted() -> None:
    with Allocations() as allocations:
        rows = Rows(SHAPE, 96, 3, load_operations("cuda"), torch.device(DEVICE))
    layouts = row_layout(SHAPE), penalty_layout(3, 96), input_layout(SHAPE)
    assert allocations.padded_bytes == sum(layout.num_bytes for layout in (*layouts, plan_layout(SHAPE)))
    tensors = {**dataclasses.asdict(rows.rows), **{f"step.{k}": v for k, v in dataclasses.asdict(rows.step).items()}}
    fields = {**layouts[0].fields, **layouts[1].fields, **{f"step.{k}": v for k, v in layouts[2].fields.items()}}
    assert {name: (tuple(t.shape), t.nbytes) for name, t in tensors.items()} == {
        name: (shape, dtype.itemsize * torch.Size(shape).numel()) for name, (dtype, shape) in fields.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [1000, 32000, 128256, 151936, 262208])
def test_the_samplers_scratch_is_covered(vocab_size: int) -> None:
    """With that of log-probabilities, which is given back after each step, and a result to warm up with."""
    device, num_rows, operations = torch.device(DEVICE), SHAPE.max_num_seqs, load_operations("cuda")
    rows = Rows(SHAPE, vocab_size, 1, operations, device)
    logits, raw = torch.zeros(num_rows, vocab_size, device=device), torch.zeros(64, vocab_size, device=device)
    with Allocations() as allocations:
        Sampler(rows, SHAPE, operations, logits, raw)
        PromptScores(torch.nn.Identity(), SHAPE, operations, raw)
        token_logprobs(logits, rows.step.rows, MAX_LOGPROBS)
    scratch = sum(allocations.sizes) - result_layout(SHAPE).num_bytes
    planned = sampler_scratch_bytes(num_rows, vocab_size)
    assert 0.95 * planned < scratch <= planned


class Alive(TorchDispatchMode):
    """Follows how many bytes are alive of what is allocated inside; `known` tensors were there before."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._sizes:
                self._sizes[key] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._sizes.pop, key)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize(
    "parameters",
    [{}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.01}, {"penalty_slot": np.arange(16), "repetition_penalty": 1.2}],
    ids=["all", "top_p", "top_k", "min_p", "penalties"],
)
def test_a_cpus_copies_of_logits_are_covered(parameters: dict[str, Any], tmp_path: Path) -> None:
    """In a step of 16 rows, all of which draw and want log-probabilities."""
    num_rows, vocab_size, operations = 16, 20000, load_operations("cpu")
    shape = msgspec.structs.replace(SHAPE, max_num_seqs=num_rows, num_mask_words=vocab_size // 32)
    rows = Rows(shape, vocab_size, num_rows, operations, torch.device("cpu"))
    logits, raw = torch.randn(num_rows, vocab_size), torch.zeros(64, vocab_size)
    sampler = Sampler(rows, shape, operations, logits, raw)
    records = np.full(num_rows, DEFAULT_ROW)
    for name, value in {"num_logprobs": 5, **parameters}.items():
        records[name] = value
    rows.rows.fields.copy_(torch.from_numpy(records.view(np.int32).reshape(num_rows, -1)))
    rows.step.rows.copy_(torch.arange(num_rows))
    rows.step.samples.fill_(1)
    sampler.open([torch.zeros(result_layout(shape).num_bytes // 4, dtype=torch.int32)])
    with Alive(logits, raw, rows.rows.prompt_mask, rows.rows.output_counts) as alive:
        sampler.sample(num_rows, int(np.bitwise_or.reduce(needs_of(records))), slot=0)
    scheduler = SchedulerConfig(
        max_num_seqs=num_rows,
        max_num_batched_tokens=40,
        max_model_len=100,
        max_num_waiting=1,
        max_num_penalty_rows=num_rows,
    )
    model = msgspec.structs.replace(load_model_config(make_model_folder(tmp_path)), vocab_size=vocab_size)
    worker = worker_memory(model, layer_groups(model, 100), scheduler, shape, 4, "cpu", cuda_graphs=False)
    assert alive.peak + logits.nbytes + raw.nbytes <= worker.sampler_bytes


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(8, 8), (32, 8), (6, 2), (71, 1)])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_attention_workspaces_are_covered(
    num_heads: int, num_kv_heads: int, head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the tile, each tensor of a workspace is at most as large as planned."""
    monkeypatch.setattr(attention_workspace, "_num_sms", lambda device: HOPPER_SMS)
    changes = {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "head_dim": head_dim}
    model = msgspec.structs.replace(load_model_config(make_model_folder(tmp_path)), **changes)
    shape = msgspec.structs.replace(SHAPE, max_num_seqs=100, max_num_batched_tokens=1000)
    for dtype in (torch.bfloat16, torch.float32):
        planned = attention_layout(model, shape, dtype.itemsize, 100).sizes
        for use_wgmma in {False, dtype == torch.bfloat16 and head_dim in WGMMA_TILES}:
            workspace = make_attention_workspace(
                100, 1000, num_kv_heads, num_heads // num_kv_heads, head_dim, "meta",
                dtype=dtype, use_wgmma=use_wgmma, max_shared_tokens=100,
            )  # fmt: skip
            tensors = {
                f"{prefix}{field.name}": value
                for prefix, part in (("", workspace), ("short.", workspace.short), ("long.", workspace.long))
                for field in dataclasses.fields(part)
                if isinstance(value := getattr(part, field.name), torch.Tensor)
            }
            assert tensors.keys() == planned.keys()
            assert {name: t.nbytes for name, t in tensors.items() if t.nbytes > planned[name]} == {}
    assert {key[0] for key in LONG_TILES} == {64, 128, 256} == set(WGMMA_TILES), "head_dims above name each tile"


def test_partial_products_are_what_is_counted() -> None:
    workspace = make_skinny_workspace("meta")
    assert workspace.partials.nbytes + workspace.arrivals.nbytes == PRODUCT_BUFFER_BYTES


def test_buffers_are_ropes_table_and_workspaces(tmp_path: Path) -> None:
    model = load_model_config(make_model_folder(tmp_path))
    scheduler = SchedulerConfig(
        max_num_seqs=2, max_num_batched_tokens=40, max_model_len=100, max_num_waiting=1, max_num_penalty_rows=1
    )
    build = dataclasses.replace(BUILD, operations=load_operations("cuda"))
    table = RotaryEmbedding(model.head_dim, scheduler.max_model_len, model.rope, build).cos_sin
    groups = layer_groups(model, scheduler.max_model_len)
    worker = worker_memory(model, groups, scheduler, SHAPE, 2, "cuda", cuda_graphs=True)
    assert PagedAttention.shares_beginnings(groups.windows)
    others = attention_layout(model, SHAPE, 2, scheduler.max_num_seqs).num_bytes + PRODUCT_BUFFER_BYTES
    assert worker.buffer_bytes - others == table.nbytes


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_tied_matrix_is_there_twice_where_it_is_packed(dtype: str, tmp_path: Path) -> None:
    model = load_model_config(make_model_folder(tmp_path, tie_word_embeddings=True))
    weight = torch.zeros(model.vocab_size, model.hidden_size, dtype=torch_dtype(dtype))
    is_copied = load_operations("cpu").pack_weight(weight).tensor is not weight
    assert packed_bytes(model, dtype, "cpu") == (weight.nbytes if is_copied else 0)
