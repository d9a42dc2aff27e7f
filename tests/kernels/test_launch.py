"""Bound launches: every varying argument arrives, the others stay, and a compiled kernel is called as Triton would."""

from tests.kernels.device import DEVICE  # isort: skip

from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

from kernels.launch import CompiledLaunch, bind


@triton.jit(do_not_specialize=["out_ptr", "length"])
def _shift_kernel(in_ptr, out_ptr, length, summand, none_ptr, BLOCK: tl.constexpr):
    """out[y, i] = in[i] + summand + y for i < length."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(in_ptr + i, mask=i < length, other=0)
    if none_ptr is not None:
        values *= 0
    y = tl.program_id(1)
    tl.store(out_ptr + y * length + i, values + summand + y, mask=i < length)


def bound(values: torch.Tensor, out: torch.Tensor):
    arguments = {"in_ptr": values, "out_ptr": out, "length": 1, "summand": 16, "none_ptr": None, "BLOCK": 8}
    return bind(_shift_kernel, arguments, ("out_ptr", "length"), num_warps=1)


@pytest.mark.parametrize("length", [1, 16, 21])
def test_varying_arguments_arrive(length: int) -> None:
    """Numbers and addresses for which Triton would compile another kernel: 1, multiples of 16, odd addresses."""
    values = torch.randint(0, 1000, (32,), dtype=torch.int32, device=DEVICE)
    outs = torch.full((2, 50), -7, dtype=torch.int32, device=DEVICE)
    launch = bound(values, outs)
    for out in (outs[0], outs[1, 1:]):
        launch(-(-length // 8), 2, out, length)
        wanted = values[:length] + 16
        assert out[: 2 * length].tolist() == wanted.tolist() + (wanted + 1).tolist()
        assert (out[2 * length :] == -7).all()
    assert outs[1, 0] == -7


def test_all_arguments_must_be_named() -> None:
    with pytest.raises(AssertionError, match="none_ptr"):
        bind(_shift_kernel, {"in_ptr": 0, "out_ptr": 0, "length": 1, "summand": 16, "BLOCK": 8})


def test_a_compiled_kernel_is_called_on_the_stream_of_the_moment() -> None:
    """Addresses instead of tensors, in the order of the kernel's parameters; what varied before is forgotten."""
    calls: list[tuple] = []
    compiled = SimpleNamespace(run=lambda *arguments: calls.append(arguments), function=5, packed_metadata=(1, 2))
    fixed, first, second = (torch.zeros(4) for _ in range(3))
    streams = iter([100, 200])
    launch = CompiledLaunch(compiled, [fixed, first, 3, None], [1, 2], lambda device: next(streams) + device, -1)
    launch(8, 2, second, 9)
    launch(1, 1, first, 4)
    hooks = None, None, None
    assert calls == [
        (8, 2, 1, 99, 5, (1, 2), *hooks, fixed.data_ptr(), second.data_ptr(), 9, None),
        (1, 1, 1, 199, 5, (1, 2), *hooks, fixed.data_ptr(), first.data_ptr(), 4, None),
    ]
    with pytest.raises(ValueError, match="shorter"):
        launch(1, 1, first)


@pytest.mark.skipif(DEVICE != "cuda", reason="streams and the JIT need a GPU")
def test_binding_compiles_and_launching_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(32, dtype=torch.int32, device=DEVICE)
    out = torch.full((70,), -7, dtype=torch.int32, device=DEVICE)
    launch = bound(values, out)
    compiled: list[str] = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["repr"]))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()  # on the current stream: a launch elsewhere would not be captured, but run
        launch(4, 1, out, 31)
        graph.capture_end()
    assert (out == -7).all()
    graph.replay()
    assert out[:31].tolist() == list(range(16, 47))
    assert compiled == []
