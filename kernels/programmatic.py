"""Kernels that start before the one launched before them has ended: programmatic dependent launch (compute 9.0 and up).

A kernel boundary costs more than a microsecond, and a decode step of one sequence has some 200 of them. A kernel that
is launched with `launch_pdl=may_overlap()` may start as soon as every program of the kernel before it on the stream has
called `let_dependents_start` or ended. It can then do what depends on nobody, reading weights above all, and wait for
the rest. What keeps this correct:

1. Every program of a kernel that is *launched* so calls `wait_for_earlier_kernels` before it reads or writes memory
   that any other kernel writes or reads, and also before it returns. The wait ends when the kernel before has ended and
   all that it wrote is visible. Nothing is known of the kernel before that one, but that it has been waited for in its
   turn: a single program that returns without waiting would break the chain for everybody behind it.
2. Before the wait a kernel reads constants only: weights and tables that do not change while steps run. Overwriting
   anything is for after the wait as well, because earlier kernels may still read it, or the allocator may have given
   out the same memory before. So buffers that kernels share one after the other stay as safe as they were.
3. `let_dependents_start` is only a permission, and comes first in a program: what starts early waits by itself. It
   takes effect once all programs of the grid run, so whoever starts early takes no place from those of his own past.
4. The wait is for kernels. Drivers order such a launch behind anything else (a copy, a graph, another stream's event)
   as they do any launch, but no document says so; hence those that come first after one are launched without: a step's
   preparation, the task map as the first of the forward pass, the first of the sampler. A kernel that is launched
   without starts when all before it has ended, whatever that was; those of torch and cuBLAS are of this kind.

Captured into a CUDA graph, such a launch becomes a programmatic edge. The instructions do nothing in a kernel that was
launched without, and are not there in Triton's interpreter and on older GPUs.

Sources: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA, "griddepcontrol".
"""

import functools
from dataclasses import dataclass

import triton
import triton.language as tl
from triton import knobs
from triton.language.target_info import cuda_capability_geq


@dataclass(slots=True)
class ProgrammaticSettings:
    """What benchmarks compare; read when a launch is made or captured, so to be set before a runner is made."""

    is_allowed: bool = True
    holds_first_tile: bool = True
    """Whether a program of a product of one row reads the first tile of its weight into registers while it waits, where
    it has the room."""


settings = ProgrammaticSettings()


@triton.constexpr_function
def is_supported() -> bool:
    """Whether kernels are compiled, and for a GPU that knows programmatic launches."""
    has_instructions: bool = cuda_capability_geq(9, 0)
    return has_instructions and not knobs.runtime.interpret


_is_supported_here = functools.cache(lambda: bool(is_supported()))
"""A process has one kind of GPU."""


def may_overlap() -> bool:
    """The launch option `launch_pdl` of a kernel that keeps the rules above."""
    return settings.is_allowed and _is_supported_here()


@triton.jit
def let_dependents_start():
    """Permits the next kernel on the stream to start, once all programs of this one have got here."""
    if is_supported():
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_earlier_kernels():
    """Returns when all kernels before this one have ended and what they wrote can be read."""
    if is_supported():
        tl.extra.cuda.gdc_wait()
