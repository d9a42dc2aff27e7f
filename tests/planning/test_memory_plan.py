"""The memory plan against figures computed by hand, and what it refuses."""

import re
from pathlib import Path

import msgspec
import pytest

from engine_core.config.checkpoint import read_checkpoint
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import load_model_config
from engine_core.ipc.step import StepShape, plan_layout, result_layout
from engine_core.ipc.worker_tensors import input_layout, row_layout
from engine_core.planning.memory_plan import Division, MemoryPlan, MemoryRequest, format_bytes, make_memory_plan
from engine_core.planning.model_memory import num_parameters
from engine_core.planning.worker_memory import (
    CUBLAS_WORKSPACE_BYTES,
    CUDA_CONTEXT_BYTES,
    GRAPH_BYTES,
    SAMPLER_ROW_BYTES,
)
from tests.config.models import make_model_folder

GIB = 2**30
CPU = DeviceMemory("cpu", "CPU", 16 * GIB, 8 * GIB)
GPU = DeviceMemory("cuda", "GPU", 80 * GIB, 80 * GIB)
# The tiny model: embeddings and output 2 x 96 x 32, the last norm 32, and per layer two norms of 32, q and o 32 x 32,
# k and v 16 x 32, three MLP matrices of 64 x 32.
LAYER = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
PARAMETERS = 2 * 96 * 32 + 32 + 2 * LAYER
# 2 (keys and values) x 2 layers x 2 KV heads x 8 values of a head
KV_VALUES = 2 * 2 * 2 * 8


def scheduler(**changes: int) -> SchedulerConfig:
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 100, "max_num_waiting": 4}
    return SchedulerConfig(**{**values, "max_num_penalty_rows": 2, **changes})


def padded(*sizes: int) -> int:
    """Of tensors of these sizes, each on a boundary of 64 bytes."""
    return sum(-(-size // 64) * 64 for size in sizes)


def rows_and_slots() -> int:
    """Of a worker for the tiny model: rows, inputs, plans and results of 5 slots and a sixth of each."""
    shape = StepShape(
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_model_len=100,
        block_size=16,
        num_mask_words=3,
        num_host_blocks=100,
    )
    rows_and_inputs = row_layout(shape).num_bytes + input_layout(shape).num_bytes
    plans_and_results = 6 * (plan_layout(shape).num_bytes + result_layout(shape).num_bytes)
    # Masks of 3 words for 96 tokens, and the row of each, in each of 5 slots.
    return rows_and_inputs + plans_and_results + 5 * padded(8 * 3 * 4, 8 * 4)


def plan_for(
    folder: Path,
    device: DeviceMemory = CPU,
    dtype: str = "float32",
    with_files: bool = True,
    steps: dict[str, int] | None = None,
    **changes: object,
) -> MemoryPlan:
    """`steps` changes the scheduler's configuration, other names the request for memory."""
    values = {"block_size": 16, "gpu_memory_utilization": 0.9}
    request = MemoryRequest(**{**values, "kv_cache_memory_bytes": None, "num_gpu_blocks_override": None, **changes})
    tensors = read_checkpoint(folder) if with_files else None
    return make_memory_plan(
        Division(load_model_config(folder), tensors, dtype, scheduler(**steps or {}), device, request)
    )


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_figures_by_hand(tmp_path: Path, dtype: str, size: int) -> None:
    plan = plan_for(make_model_folder(tmp_path), dtype=dtype)
    assert plan.weight_bytes == PARAMETERS * size
    assert plan.kv_bytes_per_token == KV_VALUES * size
    assert plan.bytes_per_block == 16 * KV_VALUES * size
    assert plan.num_blocks == GIB // (16 * KV_VALUES * size)  # 1 GiB is less than 40 % of 8 GiB
    assert plan.num_kv_tokens == plan.num_blocks * 16
    assert plan.max_concurrency == plan.num_blocks / 7  # 100 tokens need 7 blocks of 16
    worker = plan.worker
    assert worker.penalty_bytes == 2 * 96 * 5
    assert worker.row_bytes == rows_and_slots() + 8 * 100 * 4  # with the engine core's 100 tokens of a row
    # 64 tokens x (4 hidden states of 32, and 3 x 64 of the MLP, more than the attention's 3 x 32 + 2 x 16), the keys
    # and values of 100 tokens and a mask of 64 x 100 float32.
    assert worker.activation_bytes == 64 * (4 * 32 + 3 * 64) * size + 100 * 2 * 16 * size + 64 * 100 * 4
    # float32 logits of 8 rows and of 64 tokens of a prompt; 8 copies of the former take less than 2 of the latter
    assert worker.sampler_bytes == (8 + 64 + 2 * 64) * 96 * 4
    assert worker.buffer_bytes == 100 * 8 * size  # RoPE: cosines and sines of 100 positions, heads of 8
    assert plan.fixed_bytes == plan.weight_bytes + sum(
        (
            worker.activation_bytes,
            worker.sampler_bytes,
            worker.buffer_bytes,
            worker.row_bytes,
            worker.penalty_bytes,
            worker.runtime_bytes,
        )
    )
    assert worker.graph_bytes == 0


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_figures_of_a_gpu_by_hand(tmp_path: Path, dtype: str, size: int) -> None:
    plan = plan_for(make_model_folder(tmp_path), GPU, dtype)
    assert (plan.weight_bytes, plan.kv_bytes_per_token) == (PARAMETERS * size, KV_VALUES * size)
    worker = plan.worker
    # 64 tokens x (residual, the layer before's output, normed input of 32; gate and up 2 x 64, their product 64), and
    # the last hidden states of 8 rows, gathered and copied.
    assert worker.activation_bytes == (64 * (3 * 32 + 3 * 64) + 2 * 8 * 32) * size
    # Logits of 8 rows and of 64 tokens of a prompt. Scratch has two numbers for the one block of the vocabulary, and 67
    # for log-probabilities.
    assert worker.sampler_bytes == (8 + 64) * 96 * 4 + 64 * (SAMPLER_ROW_BYTES + 4 * (2 + 67))
    # Partial results of 4 x 132 programs with 8 rows and of the long rows' programs, two each, heads padded to 16
    # values and two sums. Records of programs, and of segments, which end at a full tile or with one of 8 sequences.
    # How many partial results of each segment have arrived, for 2 KV heads. Results of 8 rows' common beginning, 4
    # heads of 8 values and a sum. Two numbers a sequence.
    programs, rows, capacity = (132, 128, 64 // 64 + 8) if size == 2 else (264, 32, 64 // 8 + 8)
    attention = padded(*(count * 2 * r * values * 4 for count, r in ((528, 8), (programs, rows)) for values in (16, 2)))
    attention += (528 + programs) * 64 + padded(9 * 32, (capacity + 1) * 32, 8 * 2 * 4, capacity * 2 * 4)
    attention += padded(8 * 4 * 8 * 4, 8 * 4 * 4, 8 * 4, 8 * 4)
    # RoPE in float32; partial products of 132 programs with 64 x 32 values, twice as many counters.
    assert worker.buffer_bytes == 100 * 8 * 4 + attention + 132 * (64 * 32 + 2) * 4
    assert worker.row_bytes == rows_and_slots()
    assert worker.penalty_bytes == 2 * 96 * 5
    eager = plan_for(tmp_path, GPU, dtype, cuda_graphs=False)
    assert eager.worker.runtime_bytes == CUDA_CONTEXT_BYTES + CUBLAS_WORKSPACE_BYTES
    assert worker.runtime_bytes == eager.worker.runtime_bytes
    # Graphs of 1, 2, 4 and 8 rows, of 8 that begin alike, and of 32 and 64 tokens.
    assert (worker.graph_bytes, eager.worker.graph_bytes) == (7 * GRAPH_BYTES, 0)


def test_wide_heads_make_attention_the_peak_of_a_gpus_layer(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, head_dim=64)
    # residual, the layer before's output, normed input of 32; queries 4 x 64, keys and values 4 x 64, the output 4 x 64
    activations = plan_for(folder, GPU, "bfloat16").worker.activation_bytes
    assert activations == (64 * (3 * 32 + 3 * 4 * 64) + 2 * 8 * 32) * 2
    folder = make_model_folder(tmp_path / "narrow", head_dim=2, intermediate_size=8)
    # and where both are narrow, the last product: its input of 8 and its output beside the three
    activations = plan_for(folder, GPU, "bfloat16").worker.activation_bytes
    assert activations == (64 * (4 * 32 + 8) + 2 * 8 * 32) * 2


def test_norms_of_heads_are_counted(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=8)
    assert num_parameters(load_model_config(folder)) == PARAMETERS + 2 * 2 * 8


def test_made_up_weights_take_what_real_ones_take(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    assert num_parameters(load_model_config(folder)) == PARAMETERS
    assert plan_for(folder, with_files=False) == plan_for(folder)


def test_tied_embeddings_are_counted_once_but_where_one_copy_is_packed(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    tied = make_model_folder(tmp_path / "tied", tie_word_embeddings=True)
    assert plan_for(tied, GPU).weight_bytes == (PARAMETERS - 96 * 32) * 4
    assert plan_for(tied, dtype="float16").weight_bytes == (PARAMETERS - 96 * 32) * 2
    assert plan_for(tied).weight_bytes == plan_for(folder).weight_bytes == PARAMETERS * 4
    assert plan_for(tied, with_files=False) == plan_for(tied)


def test_a_small_machine_gives_at_most_forty_percent(tmp_path: Path) -> None:
    plan = plan_for(make_model_folder(tmp_path), DeviceMemory("cpu", "CPU", GIB, GIB))
    assert plan.num_blocks == int(0.4 * GIB) // plan.bytes_per_block


def test_a_gpu_gives_the_rest_of_its_share(tmp_path: Path) -> None:
    device = DeviceMemory("cuda", "GPU", 80 * GIB, 79 * GIB)
    plan = plan_for(make_model_folder(tmp_path), device)
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
    with pytest.raises(ConfigError, match=r"; --max-model-len 80 or --num-gpu-blocks-override 7 would do\.$") as error:
        plan_for(folder, num_gpu_blocks_override=5)
    assert "\n" not in str(error.value)
    assert plan_for(folder, num_gpu_blocks_override=7).num_blocks == 7
    assert plan_for(folder, num_gpu_blocks_override=5, steps={"max_model_len": 80}).num_blocks == 5
    assert plan_for(folder, kv_cache_memory_bytes=28672).num_blocks == 7
    with pytest.raises(ConfigError, match=r"^[^\n]*--kv-cache-memory-bytes 28672 would do.$"):
        plan_for(folder, kv_cache_memory_bytes=100)


def test_a_cache_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1000000000 blocks .* does not fit into memory, where \d+ blocks") as error:
        plan_for(make_model_folder(tmp_path), num_gpu_blocks_override=10**9)
    remedy = re.search(r"; --num-gpu-blocks-override (\d+) would do\.$", str(error.value))
    assert remedy is not None
    plan_for(make_model_folder(tmp_path), num_gpu_blocks_override=int(remedy[1]))


def test_weights_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not fit into memory: .* can be used on this CPU"):
        plan_for(make_model_folder(tmp_path), DeviceMemory("cpu", "CPU", GIB, 200 * 2**20))
    with pytest.raises(ConfigError, match="--gpu-memory-utilization"):
        plan_for(make_model_folder(tmp_path), DeviceMemory("cuda", "GPU", GIB, 550 * 2**20))


def gpu_with(total: int, free: int | None = None) -> DeviceMemory:
    return DeviceMemory("cuda", "GPU", total, total if free is None else free)


def refusal(folder: Path, device: DeviceMemory, dtype: str = "bfloat16", steps: dict[str, int] | None = None) -> str:
    """Why nothing fits, in one sentence."""
    with pytest.raises(ConfigError) as caught:
        plan_for(folder, device, dtype, with_files=False, steps=steps)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_refusal_on_a_gpu_names_what_would_do_and_that_does(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24)
    half = plan_for(folder, GPU, "bfloat16", with_files=False)
    device = gpu_with(int(half.bytes_for_one / 0.9) + 16)
    assert "; --dtype bfloat16 would do." in refusal(folder, device, "float32")
    plan_for(folder, device, "bfloat16", with_files=False)

    device = gpu_with(int(half.bytes_for_one / 0.945))
    assert "; --gpu-memory-utilization 0.95 would do." in refusal(folder, device)
    plan_for(folder, device, "bfloat16", with_files=False, gpu_memory_utilization=0.95)

    wide = {"max_num_seqs": 256, "max_num_batched_tokens": 65536}
    message = refusal(folder, gpu_with(int((half.bytes_for_one + 100 * 2**20) / 0.9)), steps=wide)
    assert "; --max-num-seqs 16 with --max-num-batched-tokens 512 would do." in message
    assert re.search(r"; a device with [0-9.]+ GiB would do\.$", refusal(folder, gpu_with(GIB)))


def test_a_gpu_too_small_for_the_longest_request_names_a_length_that_fits(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, max_position_embeddings=2**20)
    steps = {"max_model_len": 2**20}
    whole = plan_for(folder, GPU, steps=steps)
    device = gpu_with(int((whole.fixed_bytes + whole.bytes_per_block * 36000) / 0.9) + 16)
    match = re.search(
        r"; --max-model-len (\d+) or --dtype bfloat16 would do\.$", refusal(folder, device, "float32", steps)
    )
    assert match is not None
    assert plan_for(folder, device, steps={"max_model_len": int(match.group(1))}).num_blocks >= 36000
    assert plan_for(folder, device, "bfloat16", steps=steps).num_blocks >= 2**20 // 16


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


def test_windows_make_room_for_more_requests(tmp_path: Path) -> None:
    """Half of the layers see 32 tokens: a block holds one layer, and of a long request these keep few."""
    folder = make_model_folder(tmp_path)
    model = msgspec.structs.replace(load_model_config(folder), sliding_window=32, sliding_layers=(0,))
    request = MemoryRequest(
        block_size=16, gpu_memory_utilization=0.9, kv_cache_memory_bytes=None, num_gpu_blocks_override=70
    )
    steps = scheduler(max_model_len=320, max_num_batched_tokens=64)
    plan = make_memory_plan(Division(model, None, "float32", steps, CPU, request))
    assert plan.kv_bytes_per_token == KV_VALUES * 4
    assert plan.bytes_per_block == 16 * KV_VALUES * 4 // 2
    # 20 blocks of the layer that sees all; 31 + 64 tokens of the other lie in 7 blocks at most, 31 + 1 in 3.
    assert plan.demand.peak(320) == 20 + 7
    assert plan.max_concurrency == (70 - 27 + 23) / 23
    assert plan.requests_of(32) == 70 / 4
    assert plan.num_kv_tokens == int(plan.max_concurrency * 320)
    whole = make_memory_plan(Division(load_model_config(folder), None, "float32", steps, CPU, request))
    assert whole.worker.row_bytes < plan.worker.row_bytes
    fewer = msgspec.structs.replace(request, num_gpu_blocks_override=26)
    with pytest.raises(ConfigError, match="--max-model-len 304 or --num-gpu-blocks-override 27 would do"):
        make_memory_plan(Division(model, None, "float32", steps, CPU, fewer))


def test_parameters_of_gemma(tmp_path: Path) -> None:
    model = load_model_config(make_model_folder(tmp_path))
    with_norms = msgspec.structs.replace(model, post_norms=True)
    assert num_parameters(with_norms) - num_parameters(model) == 2 * 2 * 32
