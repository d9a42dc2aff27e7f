"""Kernels whose arguments are bound once, so that a launch costs the host little.

Triton's own launch looks at every argument each time (type, alignment, whether it is 1 or a multiple of 16), makes a
key of all and asks the driver about every pointer: some 12 to 50 us of Python. In a serving step all but a few
arguments are the same forever. `bind` does the looking once, compiles, and keeps addresses and numbers as the list that
the compiled kernel takes; a launch replaces the varying ones in it and calls the compiled kernel on the current stream.

Varying arguments must be declared `do_not_specialize`, so that no compiled kernel assumes anything of them: nothing is
compiled after `bind`. Triton's launch hooks (a profiler of its own, Proton) do not see these launches.

This is the one place that knows how Triton 3.6 and 3.7 start a compiled kernel. They agree: `CompiledKernel.run` takes
grid, stream, function, packed metadata, three hooks and then all arguments of the kernel, of which it skips those that
were compiled in; pointers may be plain numbers, which are taken on trust.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from triton.runtime import JITFunction, driver

from kernels.programmatic import may_overlap


class Launch(Protocol):
    def __call__(self, num_programs_x: int, num_programs_y: int, *varying: torch.Tensor | int) -> None:
        """Queues the kernel on the current stream with these values of its varying arguments, in the order in which
        `bind` was told their names. Tensors must be on the same device and of the same types as there."""


def bind(
    kernel: Any,
    arguments: Mapping[str, object],
    varying: Sequence[str] = (),
    num_warps: int = 4,
    *,
    overlaps: bool = False,
) -> Launch:
    """A launch of `kernel` (a `@triton.jit` function) with `arguments` for its parameters by name, constants included;
    those of `varying` are examples. Compiles the kernel and loads it to the current device; does not run it.
    `overlaps`: it keeps the rules of kernels/programmatic.py, and may start while the kernel before it runs.

    The tensors among the arguments are kept alive, and must stay where they are.
    """
    names = kernel.arg_names
    assert arguments.keys() == set(names), arguments.keys() ^ set(names)
    values = [arguments[name] for name in names]
    places = [names.index(name) for name in varying]
    if not isinstance(kernel, JITFunction):  # Triton's interpreter, which takes tensors and looks at everything again
        return _interpreted(kernel, values, places)
    for place in places:
        assert kernel.params[place].do_not_specialize, (kernel, names[place])
    return CompiledLaunch(
        kernel.warmup(*values, grid=(1,), num_warps=num_warps, launch_pdl=overlaps and may_overlap()),
        values,
        places,
        driver.active.get_current_stream,
        driver.active.get_current_device(),
    )


class CompiledLaunch:
    """A compiled kernel with its arguments, on one device."""

    def __init__(
        self,
        compiled: Any,
        values: Sequence[object],
        places: Sequence[int],
        stream_of: Callable[[int], int],
        device: int,
    ) -> None:
        """`compiled`: Triton's `CompiledKernel`; `values`: all arguments in order, those at `places` vary;
        `stream_of`: the handle of a device's current stream."""
        for value in values:
            assert not isinstance(value, torch.Tensor) or value.get_device() == device, (value.device, device)
        self._kept = values
        self._arguments = [_plain(value) for value in values]
        self._places = tuple(places)
        self._stream_of = stream_of
        self._device = device
        self._run = compiled.run  # loads the kernel: what follows is there from then on
        self._function = compiled.function
        self._metadata = compiled.packed_metadata

    def __call__(self, num_programs_x: int, num_programs_y: int, *varying: torch.Tensor | int) -> None:
        arguments = self._arguments.copy()
        for place, value in zip(self._places, varying, strict=True):
            arguments[place] = value if isinstance(value, int) else value.data_ptr()
        self._run(
            num_programs_x,
            num_programs_y,
            1,
            self._stream_of(self._device),
            self._function,
            self._metadata,
            None,
            None,
            None,
            *arguments,
        )


def _plain(value: object) -> object:
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


def _interpreted(kernel: Any, values: Sequence[object], places: Sequence[int]) -> Launch:
    def launch(num_programs_x: int, num_programs_y: int, *varying: torch.Tensor | int) -> None:
        arguments = list(values)
        for place, value in zip(places, varying, strict=True):
            arguments[place] = value
        kernel[(num_programs_x, num_programs_y)](*arguments)

    return launch
