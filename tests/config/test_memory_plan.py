"""The memory plan against figures computed by hand, and what it refuses."""

from pathlib import Path

import pytest

from engine_core.config.checkpoint import read_checkpoint
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.errors import ConfigError
from engine_core.config.memory_plan import (
    PENALTY_BYTES_PER_TOKEN,
    ROW_BYTES,
    RUNTIME_BYTES,
    MemoryPlan,
    MemoryRequest,
    format_bytes,
    make_memory_plan,
    num_parameters,
)
from engine_core.config.model_config import load_model_config
from tests.config.models import make_model_folder

GIB = 2**30
CPU = DeviceMemory("cpu", "CPU", 16 * GIB, 8 * GIB)
# The tiny model: embeddings and output 2 x 96 x 32, the last norm 32, and per layer two norms of 32, q and o 32 x 32,
# k and v 16 x 32, three MLP matrices of 64 x 32.
LAYER = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
PARAMETERS = 2 * 96 * 32 + 32 + 2 * LAYER
# 2 (keys and values) x 2 layers x 2 KV heads x 8 values of a head
KV_VALUES = 2 * 2 * 2 * 8


def scheduler(**changes: int) -> SchedulerConfig:
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 100, "max_num_waiting": 4}
    return SchedulerConfig(**{**values, "max_num_penalty_rows": 2, **changes})


def plan_for(
    folder: Path, device: DeviceMemory = CPU, dtype: str = "float32", with_files: bool = True, **changes: object
) -> MemoryPlan:
    values = {"block_size": 16, "gpu_memory_utilization": 0.9}
    request = MemoryRequest(**{**values, "kv_cache_memory_bytes": None, "num_gpu_blocks_override": None, **changes})
    tensors = read_checkpoint(folder) if with_files else None
    return make_memory_plan(load_model_config(folder), tensors, dtype, scheduler(), device, request)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_figures_by_hand(tmp_path: Path, dtype: str, size: int) -> None:
    plan = plan_for(make_model_folder(tmp_path), dtype=dtype)
    assert plan.weight_bytes == PARAMETERS * size
    assert plan.kv_bytes_per_token == KV_VALUES * size
    assert plan.bytes_per_block == 16 * KV_VALUES * size
    assert plan.num_blocks == GIB // (16 * KV_VALUES * size)  # 1 GiB is less than 40 % of 8 GiB
    assert plan.num_kv_tokens == plan.num_blocks * 16
    assert plan.max_concurrency == plan.num_blocks / 7  # 100 tokens need 7 blocks of 16
    assert plan.penalty_bytes == 2 * 96 * PENALTY_BYTES_PER_TOKEN
    assert plan.row_bytes == 8 * (7 * 4 + ROW_BYTES + 100 * 4)  # on a CPU with the 100 tokens of a row
    # 64 tokens x (4 hidden states of 32, and 3 x 64 of the MLP, more than the attention's 3 x 32 + 2 x 16); on a CPU
    # the keys and values of 100 tokens and a mask of 64 x 100 float32; then float32 logits of 8 rows, four times.
    forward = 64 * (4 * 32 + 3 * 64) * size
    assert plan.activation_bytes == forward + 100 * 2 * 16 * size + 64 * 100 * 4 + 8 * 96 * 4 * 4
    gpu = plan_for(tmp_path, DeviceMemory("cuda", "GPU", 80 * GIB, 80 * GIB), dtype)
    assert gpu.activation_bytes == forward + 8 * 96 * 4 * 4
    assert gpu.row_bytes == 8 * (7 * 4 + ROW_BYTES)


def test_made_up_weights_take_what_real_ones_take(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    assert num_parameters(load_model_config(folder)) == PARAMETERS
    assert plan_for(folder, with_files=False) == plan_for(folder)


def test_tied_embeddings_are_counted_once_but_where_one_copy_is_packed(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    tied = make_model_folder(tmp_path / "tied", tie_word_embeddings=True)
    gpu = DeviceMemory("cuda", "GPU", 80 * GIB, 80 * GIB)
    assert plan_for(tied, gpu).weight_bytes == (PARAMETERS - 96 * 32) * 4
    assert plan_for(tied, dtype="float16").weight_bytes == (PARAMETERS - 96 * 32) * 2
    assert plan_for(tied).weight_bytes == plan_for(folder).weight_bytes == PARAMETERS * 4
    assert plan_for(tied, with_files=False) == plan_for(tied)


def test_a_small_machine_gives_at_most_forty_percent(tmp_path: Path) -> None:
    plan = plan_for(make_model_folder(tmp_path), DeviceMemory("cpu", "CPU", GIB, GIB))
    assert plan.num_blocks == int(0.4 * GIB) // plan.bytes_per_block


def test_a_gpu_gives_the_rest_of_its_share(tmp_path: Path) -> None:
    device = DeviceMemory("cuda", "GPU", 80 * GIB, 79 * GIB)
    plan = plan_for(make_model_folder(tmp_path), device)
    assert plan.runtime_bytes == RUNTIME_BYTES["cuda"]
    assert plan.num_blocks == (int(80 * GIB * 0.9) - plan.fixed_bytes) // plan.bytes_per_block
    busy = plan_for(make_model_folder(tmp_path), DeviceMemory("cuda", "GPU", 80 * GIB, 10 * GIB))
    assert busy.fixed_bytes + busy.kv_cache_bytes <= 10 * GIB


def test_the_user_may_say_how_much(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    assert plan_for(folder, num_gpu_blocks_override=9).num_blocks == 9
    plan = plan_for(folder, kv_cache_memory_bytes=10 * 16 * KV_VALUES * 4 + 5)
    assert plan.num_blocks == 10


def test_a_request_that_cannot_fit_names_what_would(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"--max-model-len 80 or --kv-cache-memory-bytes 28672 would do") as error:
        plan_for(folder, num_gpu_blocks_override=5)
    assert "\n" not in str(error.value)
    assert plan_for(folder, kv_cache_memory_bytes=28672).num_blocks == 7
    with pytest.raises(ConfigError, match=r"^[^\n]*--kv-cache-memory-bytes 28672 would do.$"):
        plan_for(folder, kv_cache_memory_bytes=100)


def test_a_cache_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1000000000 blocks .* does not fit into memory: \d+ blocks .* would"):
        plan_for(make_model_folder(tmp_path), num_gpu_blocks_override=10**9)


def test_weights_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not fit into memory: .* can be used on this CPU"):
        plan_for(make_model_folder(tmp_path), DeviceMemory("cpu", "CPU", GIB, 200 * 2**20))
    with pytest.raises(ConfigError, match="--gpu-memory-utilization"):
        plan_for(make_model_folder(tmp_path), DeviceMemory("cuda", "GPU", GIB, 600 * 2**20))


def test_sizes_for_people() -> None:
    sizes = [0, 1023, 1024, 1536, 5 * 2**20, 3 * 2**30, 2**60]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "1024.0 PiB",
    ]
