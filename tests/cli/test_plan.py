"""`quire plan`: GPUs that are not here, several of them, and whatever a model folder may be: figures, or one line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_core.config.devices import GPU_MEMORY_MIB, DeviceMemory
from frontend.cli import plan as plan_module
from frontend.cli import resolve
from frontend.cli.hub import has_weights
from frontend.cli.main import main
from tests.config.models import TINY_CONFIG, make_model_folder, safetensors_header, tiny_tensors

GIB = 2**30
Capture = pytest.CaptureFixture[str]


def plan(capsys: Capture, folder: Path, *flags: str) -> dict[str, Any]:
    code = main(["plan", str(folder), "--json", *flags])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    return result


def refusal(capsys: Capture, folder: Path, *flags: str) -> str:
    """The one line on stderr."""
    code = main(["plan", str(folder), *flags])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("quire: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


# A Llama of 70 billion parameters; the file is sparse.
LARGE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


def test_a_gpu_by_name_or_by_size(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path)
    named = plan(capsys, folder, "--gpu", "h100")
    assert named["device"] == {"device": "cuda", "name": "H100", "total": 81559 * 2**20, "available": 81559 * 2**20}
    assert named["dtype"] == "bfloat16"
    sized = plan(capsys, folder, "--gpu-memory-gib", str(81559 / 1024))
    assert {**sized, "device": None} == {**named, "device": None}
    parts = sum(value for name, value in named.items() if name.endswith("_bytes") and name != "total_bytes")
    assert named["total_bytes"] == parts <= 0.9 * 81559 * 2**20
    assert named["graph_bytes"] > 0
    assert plan(capsys, folder, "--gpu", "H100", "--enforce-eager")["graph_bytes"] == 0


def test_the_largest_batch_at_several_lengths(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path)
    flags = ("--num-gpu-blocks-override", "20", "--max-num-seqs", "3")
    result = plan(capsys, folder, *flags, "--at-length", "16", "17", "128")
    batches = {entry["length"]: entry["num_requests"] for entry in result["largest_batch"]}
    assert batches == {16: 20, 17: 10, 128: 2}
    assert main(["plan", str(folder), *flags, "--at-length", "17"]) == 0
    assert "10 requests of 17 tokens, of which --max-num-seqs runs 3 at once" in capsys.readouterr().out
    assert [entry["length"] for entry in plan(capsys, folder)["largest_batch"]] == [128]
    assert [entry["length"] for entry in plan(capsys, folder, "--at-length", "0.125K", "7")["largest_batch"]] == [
        128,
        7,
    ]


def test_tensor_parallel_ranks_share_what_the_layers_share(tmp_path: Path, capsys: Capture) -> None:
    """Embeddings, output matrix and norms are whole on each; so is a KV head where ranks outnumber them."""
    folder = make_model_folder(tmp_path)
    one, two, four = (plan(capsys, folder, "--gpu", "L4", "--tensor-parallel-size", n) for n in ("1", "2", "4"))
    hidden, inner, head, layers = 32, 64, 8, 2
    whole = 2 * 96 * hidden + hidden + layers * 2 * hidden
    kv_head, rest = layers * 2 * head * hidden, layers * (2 * hidden * hidden + 3 * hidden * inner)
    assert one["weight_bytes"] == 2 * (whole + 2 * kv_head + rest)
    assert two["weight_bytes"] == 2 * (whole + kv_head + rest // 2)
    assert four["weight_bytes"] == 2 * (whole + kv_head + rest // 4)
    kv_bytes = 2 * 2 * layers * head  # of one KV head
    assert [p["kv_bytes_per_token"] for p in (one, two, four)] == [2 * kv_bytes, kv_bytes, kv_bytes]
    dummy = ("--gpu", "L4", "--load-format", "dummy", "--tensor-parallel-size")
    assert [plan(capsys, folder, *dummy, n) for n in ("1", "2", "4")] == [one, two, four]


def test_biases_are_shared_with_their_outputs_only(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path, attention_bias=True, mlp_bias=True)
    tensors = tiny_tensors(TINY_CONFIG)
    for layer in range(2):
        names = {"self_attn.q_proj": 32, "self_attn.k_proj": 16, "self_attn.v_proj": 16, "self_attn.o_proj": 32}
        names |= {"mlp.gate_proj": 64, "mlp.up_proj": 64, "mlp.down_proj": 32}
        tensors |= {f"model.layers.{layer}.{name}.bias": ("BF16", [size]) for name, size in names.items()}
    header, size = safetensors_header(tensors)
    (folder / "model.safetensors").write_bytes(header + bytes(size))
    for ranks in ("1", "2", "4"):
        flags = ("--gpu", "L4", "--tensor-parallel-size", ranks)
        assert plan(capsys, folder, *flags) == plan(capsys, folder, *flags, "--load-format", "dummy")


def test_sizes_that_do_not_divide_are_refused_with_those_that_do(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path, num_attention_heads=12, num_key_value_heads=4, head_dim=8)
    assert "1 or 2 or 4 would do." in refusal(capsys, folder, "--gpu", "L4", "--tensor-parallel-size", "3")
    assert "does not divide 12 attention heads" in refusal(capsys, folder, "--gpu", "L4", "--tensor-parallel-size", "8")


def test_what_cannot_fit_names_what_would_and_that_does(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path, **LARGE)
    flags = ("--max-model-len", "8192")
    message = refusal(capsys, folder, *flags, "--gpu", "H100")
    assert "does not fit into memory" in message
    assert message.endswith(" So would --tensor-parallel-size 2 or --gpu B200.\n")
    assert plan(capsys, folder, *flags, "--gpu", "H100", "--tensor-parallel-size", "2")["num_blocks"] > 512
    assert plan(capsys, folder, *flags, "--gpu", "B200")["num_blocks"] > 512
    smaller = refusal(capsys, folder, "--gpu-memory-gib", "160")
    assert "--max-model-len " in smaller
    length = smaller.split("--max-model-len ")[2].split()[0]
    assert plan(capsys, folder, "--gpu-memory-gib", "160", "--max-model-len", length)["max_model_len"] == int(length)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--gpu", "Voodoo2"], "known are A10, "),
        (["--gpu", "H100", "--gpu-memory-gib", "80"], "one of them is enough"),
        (["--gpu", "H100", "--device", "cpu"], "no GPU to describe"),
        (["--gpu-memory-gib", "0"], "--gpu-memory-gib: "),
        (["--gpu-memory-gib", "nan"], "--gpu-memory-gib: "),
        (["--tensor-parallel-size", "0"], "--tensor-parallel-size: "),
        (["--device", "cpu", "--tensor-parallel-size", "2"], "is for GPUs"),
        (["--at-length", "0"], "--at-length: 0 is not a whole number from 1 to 2147483647."),
        (["--at-length", "8", "x"], "--at-length: 'x' is not a whole number"),
        (["--at-length", "129"], "more than the 128 tokens"),
        (["--at-length"], "expected at least one argument"),
    ],
)
def test_flags_that_make_no_sense(tmp_path: Path, capsys: Capture, flags: list[str], reason: str) -> None:
    assert reason in refusal(capsys, make_model_folder(tmp_path), *flags)


def test_the_layer_groups_as_json(tmp_path: Path, capsys: Capture) -> None:
    assert plan(capsys, make_model_folder(tmp_path))["layer_groups"] == [{"layers": [0, 1], "sliding_window": None}]
    mixed = {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1}
    folder = make_model_folder(tmp_path, architectures=["Qwen3ForCausalLM"], **mixed)
    assert plan(capsys, folder, "--load-format", "dummy")["layer_groups"] == [
        {"layers": [0], "sliding_window": None},
        {"layers": [1], "sliding_window": 40},
    ]


def test_the_host_tier_as_json(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a GPU that is not here any amount of memory may be; around one that is here there is what there is."""
    folder = make_model_folder(tmp_path)
    assert plan(capsys, folder, "--gpu", "L4")["host_tier"] == {"bytes": 0, "num_blocks": 0, "num_tokens": 0}
    monkeypatch.setattr(resolve, "probe_device", lambda device: DeviceMemory("cpu", "CPU", 2**30, 2**30))
    for described in (["--gpu", "H200"], ["--gpu-memory-gib", "80"]):
        tier = plan(capsys, folder, *described, "--kv-offload-gib", "4096")["host_tier"]
        assert tier["bytes"] == 4096 * 2**30
        assert tier["num_tokens"] == 16 * tier["num_blocks"] == 4096 * 2**30 // 128
    assert "does not fit into the machine's memory" in refusal(capsys, folder, "--kv-offload-gib", "2097")


def test_a_host_tier_does_not_hide_that_the_model_is_too_large(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "probe_device", lambda device: DeviceMemory("cpu", "CPU", 2**30, 2**30))
    monkeypatch.setattr(plan_module, "probe_device", lambda device: DeviceMemory("cuda", "GPU", 80 * GIB, 80 * GIB))
    message = refusal(capsys, make_model_folder(tmp_path, **LARGE), "--max-model-len", "8K", "--kv-offload-gib", "100")
    assert "does not fit into memory" in message
    assert message.endswith(" So would --gpu B200.\n")


def test_known_gpus_stand_in_order_of_their_memory() -> None:
    sizes = list(GPU_MEMORY_MIB.values())
    assert sizes == sorted(sizes)


def test_serve_does_not_take_the_plans_flags(tmp_path: Path, capsys: Capture) -> None:
    assert main(["serve", str(make_model_folder(tmp_path)), "--gpu", "H100"]) == 2
    assert "--gpu is no flag of quire serve: it belongs to quire plan" in capsys.readouterr().err


def test_a_hub_model_needs_its_configuration_only(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there but config.json, as after a fetch without weights."""
    folder = make_model_folder(tmp_path / "fetched")
    with_weights = plan(capsys, folder, "--gpu", "L4")
    (folder / "model.safetensors").unlink()
    assert not has_weights(folder)
    asked: list[list[str]] = []

    def snapshot_download(model: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if not local_files_only:
            asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    result = plan(capsys, Path("some/model"), "--gpu", "L4")
    assert result == {**with_weights, "model": "some/model"}
    assert asked == [["config.json", "generation_config.json"]]
    assert main(["plan", "some/model", "--gpu", "L4"]) == 0
    assert "not here: counted from config.json" in capsys.readouterr().out
    assert "has no weights" in refusal(capsys, folder)  # a folder of one's own is another matter


# Whatever a file may say

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*TINY_CONFIG, "head_dim", "rope_scaling", "layer_types", "quantization_config", "dtype"])


def damage(data: bytes, seed: int, num_changes: int) -> bytes:
    """Some bytes changed, then perhaps cut off."""
    chance, changed = random.Random(seed), bytearray(data)
    for _ in range(num_changes):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])])


def assert_figures_or_one_line(capsys: Capture, folder: Path) -> None:
    code = main(["plan", str(folder), "--gpu-memory-gib", "40"])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    if code == 0:
        assert "Capacity" in out
        assert err == ""
    else:
        assert out == ""
        assert err.startswith("quire: ")
        assert err.count("\n") == 1


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.slow
@given(changes=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
@FUZZ
def test_any_config_is_figures_or_one_line(tmp_path: Path, capsys: Capture, changes: dict[str, Any]) -> None:
    folder = make_model_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps({**TINY_CONFIG, **changes}))
    assert_figures_or_one_line(capsys, folder)


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32),
    num_changes=st.integers(0, 8),
    part=st.sampled_from(["config.json", "model.safetensors"]),
)
@FUZZ
def test_any_damage_is_figures_or_one_line(
    tmp_path: Path, capsys: Capture, seed: int, num_changes: int, part: str
) -> None:
    folder = make_model_folder(tmp_path)
    file = folder / part
    whole = file.read_bytes()
    num_damaged = len(whole) if part == "config.json" else 2**11  # in a header, which data follow
    file.write_bytes(damage(whole[:num_damaged], seed, num_changes) + whole[num_damaged:])
    assert_figures_or_one_line(capsys, folder)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F32", "F4", "", "X\ny"]) | JSON,
        "shape": st.lists(st.sampled_from([0, 1, 2, 2**59, -1]), max_size=20) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 2, 4, 2**59]), min_size=2, max_size=2) | JSON,
    }
)


@pytest.mark.slow
@given(header=JSON | st.dictionaries(st.text(max_size=8) | st.just("model.layers.9.x\n"), ENTRIES | JSON, max_size=3))
@FUZZ
def test_any_header_is_figures_or_one_line(tmp_path: Path, capsys: Capture, header: object) -> None:
    folder = make_model_folder(tmp_path)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert_figures_or_one_line(capsys, folder)


NAMES = st.sampled_from(
    ["model.safetensors", "other.safetensors", "../x.safetensors", "a\0.safetensors", "é" * 200 + ".safetensors"]
)


@pytest.mark.slow
@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=4), NAMES | JSON)}))
@FUZZ
def test_any_index_is_figures_or_one_line(tmp_path: Path, capsys: Capture, index: object) -> None:
    folder = make_model_folder(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_figures_or_one_line(capsys, folder)


def test_two_billion_layers_are_refused_at_once(tmp_path: Path, capsys: Capture) -> None:
    folder = make_model_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps({**TINY_CONFIG, "num_hidden_layers": 2**31 - 1}))
    assert "lack layer 2" in refusal(capsys, folder)
