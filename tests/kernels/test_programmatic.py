"""Programmatic dependent launch: off where it must be, and on a GPU the same bits with it as without it."""

from tests.kernels.device import DEVICE  # isort: skip

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.runtime import JITFunction

from kernels import cuda, programmatic
from kernels.activation import _activation_kernel
from kernels.attention_backend import StepAttention
from kernels.attention_tasks import _task_map_kernel, plan_attention
from kernels.attention_workspace import make_attention_workspace
from kernels.block_bounds import _block_bounds_kernel, _block_maxima_kernel
from kernels.embedding import _embed_kernel
from kernels.filter_bins import histogram_kernel
from kernels.filter_candidates import gather_kernel
from kernels.filter_narrowing import narrowing_kernel
from kernels.filter_thresholds import _search_kernel
from kernels.paged_attention import _paged_attention_kernel
from kernels.rms_norm import _rms_norm_kernel
from kernels.rope_write_kv import _rope_write_kv_kernel
from kernels.sample import TokenSampler, _finish_kernel
from kernels.skinny_linear import _matrix_kernel, _vector_kernel
from kernels.skinny_tiles import MAX_ROWS
from kernels.step_tensors import SampledRows
from tests.kernels.sampling_steps import make_records, make_step

needs_gpu = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability() < (9, 0), reason="such launches need a GPU of compute 9.0"
)
OVERLAPPING = [
    _activation_kernel,
    _block_bounds_kernel,
    _embed_kernel,
    _finish_kernel,
    _matrix_kernel,
    _paged_attention_kernel,
    _rms_norm_kernel,
    _rope_write_kv_kernel,
    _search_kernel,
    _vector_kernel,
    gather_kernel,
    histogram_kernel,
    narrowing_kernel,
]
VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, LAYERS = 500, 2048, 16, 2, 64, 3072, 4
BLOCK_SIZE, CONTEXT = 16, 70


@pytest.mark.parametrize(
    ("capability", "interpreted", "wanted"),
    [((9, 0), False, True), ((10, 0), False, True), ((8, 9), False, False), ((9, 0), True, False)],
)
def test_supported_where_compiled_for_new_gpus(
    capability: tuple[int, int], interpreted: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programmatic, "cuda_capability_geq", lambda *least: capability >= least)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", interpreted)
    assert programmatic.is_supported() is wanted


@pytest.mark.skipif(DEVICE == "cuda", reason="of machines without a GPU")
def test_off_without_a_gpu() -> None:
    assert not programmatic.is_supported()
    assert not programmatic.may_overlap()


def test_off_where_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programmatic, "_is_supported_here", lambda: True)
    assert programmatic.may_overlap()
    monkeypatch.setattr(programmatic.settings, "is_allowed", False)
    assert not programmatic.may_overlap()


class Decode:
    """The decode steps of a small model of random weights, with all that they read and write."""

    def __init__(self, num_rows: int) -> None:
        def random(*shape: int) -> torch.Tensor:
            return (torch.randn(shape, device=DEVICE) * shape[-1] ** -0.5).bfloat16()

        self.num_rows = num_rows
        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        shapes = (width, HIDDEN), (HIDDEN, HEADS * HEAD_DIM), (2 * INTER, HIDDEN), (HIDDEN, INTER)
        self.layers = [[cuda.pack_weight(random(*shape)) for shape in shapes] for _ in range(LAYERS)]
        self.embedding = random(VOCAB, HIDDEN) * 30
        self.norm = 1 + random(HIDDEN)
        self.head_norm = 1 + random(HEAD_DIM)
        self.cos_sin = torch.randn(CONTEXT, HEAD_DIM, device=DEVICE).clamp(-1, 1)
        self.workspace = make_attention_workspace(
            num_rows, num_rows, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, DEVICE, short_tokens=1
        )
        blocks_per_row = -(-CONTEXT // BLOCK_SIZE)
        num_blocks = num_rows * blocks_per_row

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=DEVICE)

        self.block_tables = torch.randperm(num_blocks, device=DEVICE).int().view(num_rows, blocks_per_row)
        self.first_cache = random(num_blocks, LAYERS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM) * 8
        self.cache = self.first_cache.clone()
        self.rows = torch.arange(num_rows, dtype=torch.int32, device=DEVICE)
        self.starts = torch.arange(num_rows + 1, dtype=torch.int32, device=DEVICE)
        self.input_ids, self.positions, self.seq_lens = (integers(num_rows) for _ in range(3))
        self.slots, self.indices = integers(num_rows), integers(num_rows)
        self.logits = torch.zeros(num_rows, VOCAB, device=DEVICE)

    def set_inputs(self) -> None:
        """Fresh random ones, an empty row now and then, and the cache as it was."""
        self.input_ids.random_(0, VOCAB)
        self.positions.random_(0, CONTEXT)
        self.seq_lens.copy_(self.positions + 1)
        blocks = self.block_tables.gather(1, (self.positions // BLOCK_SIZE).long()[:, None])[:, 0]
        self.slots.copy_(blocks * BLOCK_SIZE + self.positions % BLOCK_SIZE)
        self.indices.copy_(torch.randperm(self.num_rows, device=DEVICE))
        self.cache.copy_(self.first_cache)
        self.logits.fill_(torch.nan)

    def step(self) -> None:
        """As the runner makes it; a copy, a kernel of torch and a product of cuBLAS stand between kernels of ours."""
        plan_attention(self.workspace, self.rows, self.starts, self.seq_lens)
        plan = StepAttention(
            self.cache, self.workspace, self.block_tables, self.slots, has_long=False, has_shared=False
        )
        residual = cuda.embed(self.embedding, self.input_ids)
        x = cuda.rms_norm(residual, self.norm, 1e-6)
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers):
            rope = cuda.gather_rope(self.cos_sin, self.positions)
            query = plan.write(cuda.linear(x, qkv, None), rope, layer, self.head_norm, self.head_norm)
            x = cuda.linear(plan.attend(query, layer, HEAD_DIM**-0.5), out, None)
            x, residual = cuda.add_rms_norm(x, residual, self.norm, 1e-6)
            if layer == 1:
                residual = residual.clone()
            if layer == 2:
                x = x * 0.5
            x = cuda.linear(cuda.linear_act_and_mul(x, gate_up, None, "silu"), down, None)
            if layer < LAYERS - 1:
                x, residual = cuda.add_rms_norm(x, residual, self.norm, 1e-6)
        hidden = cuda.gather_add_rms_norm(x, residual, self.indices, self.norm, 1e-6)
        cuda.logits(hidden, cuda.pack_weight(self.embedding), self.logits)

    def capture(self) -> torch.cuda.CUDAGraph:
        self.set_inputs()
        self.step()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph

    def results(self, run: Callable[[], None], count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and cache after each of `count` steps, without a wait between one and the next."""
        torch.manual_seed(7)
        for _ in range(count):
            self.set_inputs()
            run()
            yield self.logits.clone(), self.cache.clone()


@needs_gpu
@pytest.mark.parametrize("num_rows", [1, 2, 8, MAX_ROWS, MAX_ROWS + 8])
def test_the_same_bits_as_without(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a graph and without one, over many steps."""
    torch.manual_seed(num_rows)
    model = Decode(num_rows)
    assert programmatic.may_overlap()
    early = model.capture()
    found = [*model.results(early.replay, 60), *model.results(model.step, 20)]
    monkeypatch.setattr(programmatic.settings, "is_allowed", False)
    wanted = list(model.results(model.capture().replay, 60))
    for index, (logits, cache) in enumerate(found):
        wanted_logits, wanted_cache = wanted[index % 60]
        assert wanted_logits.isfinite().all()
        assert torch.equal(logits, wanted_logits)
        assert torch.equal(cache, wanted_cache)


class CapturedSampler:
    """A graph of the sampler with filters, and all whose addresses it knows."""

    def __init__(self, logits: torch.Tensor, step: SampledRows) -> None:
        self.logits, self.step = logits, step
        self.sampled, self.num_sampled, self.last_token = (
            torch.zeros(len(step.fields), dtype=torch.int32, device=DEVICE) for _ in range(3)
        )
        counts = torch.zeros(0, logits.shape[1], dtype=torch.int32, device=DEVICE)
        self.sampler = TokenSampler(logits, step, self.last_token, counts)

    def run(self) -> None:
        self.sampler.sample(len(self.step), self.sampled, self.num_sampled, any_drawn=True, any_filtered=True)

    def capture(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        return graph

    def tokens(self, run: Callable[[], None]) -> list[int]:
        """The tokens that it chooses, on poisoned memory."""
        self.sampled.fill_(-1)
        run()
        return self.sampled[: len(self.step)].tolist()


@needs_gpu
@pytest.mark.parametrize("num_rows", [1, 24])
def test_the_same_tokens_as_without(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(num_rows)
    top_k = np.arange(num_rows) % 3 * 20
    step = make_step(make_records(num_rows, temperature=0.9, top_k=top_k, top_p=0.9, min_p=0.01))
    logits = torch.zeros(num_rows, 5000, device=DEVICE)
    early = CapturedSampler(logits, step)
    monkeypatch.setattr(programmatic.settings, "is_allowed", False)
    late = CapturedSampler(logits, step)
    early_graph, late_graph = early.capture(), late.capture()
    seen: set[int] = set()
    for _ in range(60):
        logits.normal_(std=2)
        found = early.tokens(early_graph.replay)
        assert found == late.tokens(late_graph.replay)
        assert found == early.tokens(early.run)
        seen.update(found)
    assert len(seen) > 30


def compiled_variants(kernel: Any) -> list[Any]:
    """What Triton compiled of a kernel in this process."""
    assert isinstance(kernel, JITFunction)
    return [compiled for caches in kernel.device_caches.values() for compiled in caches[0].values()]


@needs_gpu
def test_every_early_kernel_waits_before_it_writes_or_returns() -> None:
    """Before the wait, no kernel branches or writes, and only kernels with weights read."""
    for num_rows in (1, 8, MAX_ROWS + 8):
        Decode(num_rows).capture()
    CapturedSampler(torch.zeros(1, 5000, device=DEVICE), make_step(make_records(1)))  # compiles
    for kernel in OVERLAPPING:
        early = [compiled for compiled in compiled_variants(kernel) if compiled.metadata.launch_pdl]
        assert early, kernel
        for compiled in early:
            before, wait, _ = compiled.asm["ptx"].partition("griddepcontrol.wait")
            assert wait, kernel
            assert "griddepcontrol.launch_dependents" in before
            assert not re.search(r"\b(bra|ret|st\.global|atom|red)\b", before), kernel
            if kernel not in (_rms_norm_kernel, _vector_kernel):
                assert "ld.global" not in before, kernel
    for kernel in (_task_map_kernel, _block_maxima_kernel):
        assert not any(compiled.metadata.launch_pdl for compiled in compiled_variants(kernel))
