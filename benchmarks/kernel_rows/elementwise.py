"""Rows of the element-wise kernels of a decoder layer, with Llama-3.1-8B's sizes.

All are compared with the copy bandwidth. At 1 and 64 tokens it is the latency that counts.
"""

from collections.abc import Iterator

import torch

from benchmarks.kernel_rows.case import Bench, Case, assert_near
from kernels import reference

EPS = 1e-5


def _shapes(bench: Bench, size: int, tiny: int) -> list[tuple[int, int]]:
    return bench.pick([(1, size), (64, size), (8192, size)], [(1, tiny), (5, tiny)])


def rms_norm(bench: Bench) -> Iterator[Case]:
    from kernels.rms_norm import rms_norm

    for num_tokens, size in _shapes(bench, 4096, 72):
        moved = 2 * num_tokens * size * bench.dtype.itemsize
        weight = bench.randn(size)
        inputs = [bench.randn(num_tokens, size) for _ in range(bench.num_sets(moved))]
        outs = [bench.poisoned(num_tokens, size) for _ in inputs]

        def check(inputs: list = inputs, outs: list = outs, weight: torch.Tensor = weight) -> None:
            rms_norm(inputs[-1], weight, EPS, outs[-1])
            assert_near(outs[-1], reference.rms_norm(inputs[-1].float(), weight.float(), EPS), bench.dtype)

        calls = [lambda x=x, out=out, w=weight: rms_norm(x, w, EPS, out) for x, out in zip(inputs, outs, strict=True)]
        yield Case(f"{num_tokens} x {size}", calls, check, moved, "copy")


def add_rms_norm(bench: Bench) -> Iterator[Case]:
    from kernels.rms_norm import add_rms_norm

    for num_tokens, size in _shapes(bench, 4096, 72):
        moved = 4 * num_tokens * size * bench.dtype.itemsize
        weight = bench.randn(size)
        sets = [
            (bench.randn(num_tokens, size), bench.randn(num_tokens, size), bench.poisoned(num_tokens, size))
            for _ in range(bench.num_sets(moved))
        ]

        def check(sets: list = sets, weight: torch.Tensor = weight) -> None:
            x, residual, out = sets[-1]
            total = x.float() + residual.float()
            add_rms_norm(x, residual, weight, EPS, out)
            assert_near(residual, total, bench.dtype)
            assert_near(out, reference.rms_norm(total, weight.float(), EPS), bench.dtype)

        calls = [lambda x=x, r=r, out=out, w=weight: add_rms_norm(x, r, w, EPS, out) for x, r, out in sets]
        yield Case(f"{num_tokens} x {size}", calls, check, moved, "copy")


def gather_add_rms_norm(bench: Bench) -> Iterator[Case]:
    from kernels.rms_norm import gather_add_rms_norm

    num_rows, num_tokens, size = bench.pick((64, 8192, 4096), (3, 8, 72))
    moved = 3 * num_rows * size * bench.dtype.itemsize
    weight, x, residual = bench.randn(size), bench.randn(num_tokens, size), bench.randn(num_tokens, size)
    # Sets differ in the rows that they take.
    choices = [
        torch.randperm(num_tokens, device=bench.device)[:num_rows].to(torch.int32) for _ in range(bench.num_sets(moved))
    ]
    out = bench.poisoned(num_rows, size)

    def check() -> None:
        gather_add_rms_norm(x, residual, choices[-1], weight, EPS, out)
        total = x.float()[choices[-1].long()] + residual.float()[choices[-1].long()]
        assert_near(out, reference.rms_norm(total, weight.float(), EPS), bench.dtype)

    calls = [lambda i=indices: gather_add_rms_norm(x, residual, i, weight, EPS, out) for indices in choices]
    yield Case(f"{num_rows} of {num_tokens} x {size}", calls, check, moved, "copy")


def silu_and_mul(bench: Bench) -> Iterator[Case]:
    yield from _activation(bench, "silu")


def gelu_and_mul(bench: Bench) -> Iterator[Case]:
    yield from _activation(bench, "gelu_tanh")


def _activation(bench: Bench, activation: str) -> Iterator[Case]:
    from kernels.activation import act_and_mul

    for num_tokens, size in _shapes(bench, 14336, 72):
        moved = 3 * num_tokens * size * bench.dtype.itemsize
        inputs = [bench.randn(num_tokens, 2 * size) for _ in range(bench.num_sets(moved))]
        outs = [bench.poisoned(num_tokens, size) for _ in inputs]

        def check(inputs: list = inputs, outs: list = outs) -> None:
            act_and_mul(inputs[-1], activation, outs[-1])
            assert_near(outs[-1], reference.act_and_mul(inputs[-1].float(), activation), bench.dtype)

        calls = [lambda x=x, out=out: act_and_mul(x, activation, out) for x, out in zip(inputs, outs, strict=True)]
        yield Case(f"{num_tokens} x {2 * size}", calls, check, moved, "copy")


def embed(bench: Bench) -> Iterator[Case]:
    from kernels.embedding import embed

    vocab_size = bench.pick(128256, 50)
    table = bench.randn(vocab_size, bench.pick(4096, 72))
    for num_tokens, size in _shapes(bench, 4096, 72):
        moved = 2 * num_tokens * size * bench.dtype.itemsize
        ids = [
            torch.randint(vocab_size, (num_tokens,), device=bench.device, dtype=torch.int32)
            for _ in range(bench.num_sets(moved))
        ]
        outs = [bench.poisoned(num_tokens, size) for _ in ids]

        def check(ids: list = ids, outs: list = outs) -> None:
            embed(table, ids[-1], outs[-1])
            torch.testing.assert_close(outs[-1], table[ids[-1].long()], rtol=0, atol=0)

        calls = [lambda i=i, out=out: embed(table, i, out) for i, out in zip(ids, outs, strict=True)]
        yield Case(f"{num_tokens} x {size}", calls, check, moved, "copy")
