"""GPUs by the figures that a step's time depends on. An own one is a JSON file of the same fields.

Rates and shares come from measurements of a single thing each (`roofline.py`, `benchmark_kernels.py`). The times of
nearly empty layers and steps are what was left over of steps of one and of 64 sequences, the rate of cached reads what
the work `prefix` says. Nothing is fitted to the works `tput` and `nano`.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from engine_core.config.errors import ConfigError

Rate = Annotated[float, Meta(gt=0, le=1e18)]
Seconds = Annotated[float, Meta(ge=0, le=10)]


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU with its host. Rates are what long runs sustain, not peaks."""

    name: str
    memory_bytes: Annotated[int, Meta(ge=2**30)]
    read_bytes_per_second: Rate
    """Of a plain reduction."""
    copy_bytes_per_second: Rate
    """Read and written bytes together; of norms, RoPE and activation."""
    flops_per_second: Rate
    """Of large bfloat16 products, back to back: the power limit holds them below a single one's rate."""
    weight_read_share: Annotated[float, Meta(gt=0, le=1)]
    """Of the read bandwidth, that products of few rows reach."""
    decode_attention_share: Annotated[float, Meta(gt=0, le=1)]
    """Of the read bandwidth, that attention of many long sequences reaches."""
    prefill_attention_flops: Rate
    cached_read_bytes_per_second: Rate
    """Of keys and values that another sequence of the step reads too: they come from the second-level cache."""
    layer_seconds: Seconds
    """What a layer takes with next to nothing to compute: starts and ends of its eight kernels, which overlap."""
    wide_layer_seconds: Seconds
    """The same where the library computes the products: one kernel more, and less overlap."""
    step_seconds: Seconds
    """The same of a step around its layers: preparation, logits, sampler."""
    launch_seconds: Seconds
    """From a plan's dispatch to its start on an idle device."""
    host_bytes_per_second: Rate
    """Between the KV cache and pinned host memory, each direction."""
    core_step_seconds: Seconds
    """CPU time of the engine core for one step, planning and update together, and for each of its requests."""
    core_row_seconds: Seconds
    core_start_seconds: Seconds
    """And for each request that it starts."""


H200 = Gpu(
    name="H200",
    memory_bytes=143_771 * 2**20,
    read_bytes_per_second=4.55e12,
    copy_bytes_per_second=4.2e12,
    flops_per_second=680e12,
    weight_read_share=0.95,
    decode_attention_share=0.92,
    prefill_attention_flops=480e12,
    cached_read_bytes_per_second=8e12,
    layer_seconds=16e-6,
    wide_layer_seconds=24e-6,
    step_seconds=60e-6,
    launch_seconds=300e-6,
    host_bytes_per_second=50e9,
    core_step_seconds=330e-6,
    core_row_seconds=1.2e-6,
    core_start_seconds=210e-6,
)
"""Measured."""
H100 = msgspec.structs.replace(
    H200,
    name="H100",
    memory_bytes=81_559 * 2**20,
    read_bytes_per_second=H200.read_bytes_per_second * 3.35 / 4.8,
    copy_bytes_per_second=H200.copy_bytes_per_second * 3.35 / 4.8,
)
"""Not measured: the same processor, with the bandwidth of its data sheet."""
GPUS = {"h200": H200, "h100": H100}


def find_gpu(name: str) -> Gpu:
    """By name, or from a JSON file. Raises `ConfigError`."""
    if name in GPUS:
        return GPUS[name]
    try:
        return msgspec.json.decode(Path(name).read_bytes(), type=Gpu)
    except OSError:
        known = ", ".join(GPUS)
        raise ConfigError(f"--gpu {name}: there is no such GPU ({known}) and no such JSON file.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--gpu {name}: {error}.") from None
