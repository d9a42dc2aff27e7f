"""From settings and a model folder to the frozen configuration."""

import json
from pathlib import Path

import msgspec
import pytest

from engine_core.config import devices
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import ServeConfig
from engine_core.config.errors import ConfigError
from engine_core.planning.hang_timeout import default_hang_timeout
from frontend.api_keys import digest_of
from frontend.cli import resolve as resolve_module
from frontend.cli.flags import make_args
from frontend.cli.report import format_report
from frontend.cli.resolve import Resolved, resolve
from tests.config.models import make_model_folder

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a known size, so that plans do not depend on the one that runs the tests."""
    monkeypatch.setattr(resolve_module, "probe_device", lambda device: DeviceMemory("cpu", "CPU", 8 * GIB, 4 * GIB))


def resolved(folder: Path, **values: object) -> Resolved:
    return resolve(make_args({"model": str(folder), **values}))


def test_what_follows_from_the_model(tmp_path: Path) -> None:
    result = resolved(make_model_folder(tmp_path / "tiny"))
    engine, frontend = result.engine, result.frontend
    assert (engine.device, engine.dtype, engine.load_format) == ("cpu", "float32", "safetensors")
    assert engine.scheduler.max_model_len == frontend.max_model_len == 128
    assert engine.scheduler.max_num_batched_tokens == 2048
    assert engine.cache.num_blocks == GIB // engine.kv_layout().block_bytes
    assert result.plan.kv_layout == engine.kv_layout()
    assert frontend.served_model_names == ("tiny",)
    assert frontend.model_path == str(tmp_path / "tiny")
    assert frontend.chat_template is None


def test_the_hang_timeout(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    engine = resolved(folder).engine
    derived = default_hang_timeout(engine.model, engine.scheduler, "cpu")
    assert resolved(folder).frontend.hang_timeout == derived > 60
    for given in (0.0, 3.0, 1000.0):
        assert resolved(folder, hang_timeout=given).frontend.hang_timeout == given


def test_it_survives_the_way_to_the_children(tmp_path: Path) -> None:
    result = resolved(make_model_folder(tmp_path), served_model_name=["a", "b"], trace="t.json")
    config = result.serve_config("/run/x", 1234)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServeConfig) == config
    assert config.frontend.port == 1234
    assert config.core_endpoint() == "ipc:///run/x/core-0.sock"
    assert config.engine.trace_file == str(Path.cwd() / "t.json")


def test_a_gpu_takes_the_checkpoints_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "probe_device", lambda device: DeviceMemory("cuda", "G", 80 * GIB, 79 * GIB))
    for stored, served in (("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")):
        engine = resolved(make_model_folder(tmp_path / stored, torch_dtype=stored)).engine
        assert (engine.device, engine.dtype) == ("cuda", served)
        assert engine.scheduler.max_num_batched_tokens == 8192
    assert resolved(tmp_path / "float32", dtype="float32").engine.dtype == "float32"


def test_auto_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> DeviceMemory:
        raise devices.UnusableGpu("no driver", "another machine would do")

    monkeypatch.setattr(devices, "_cuda_memory", no_gpu)
    assert devices.probe_device("auto").device == "cpu"
    assert devices.probe_device("cpu").available > 0
    with pytest.raises(ConfigError, match="no driver"):
        devices.probe_device("cuda")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"max_model_len": 129}, "more than the 128 positions"),
        ({"max_num_batched_tokens": 100, "max_num_seqs": 256}, "less than --max-num-seqs 256"),
        ({"kv_cache_memory_bytes": 1000}, "--kv-cache-memory-bytes"),
        ({"model": ""}, "No model was named"),
        ({"model": " "}, "No model was named"),
        (
            {"num_gpu_blocks_override": 64, "kv_cache_memory_bytes": "1M"},
            "--num-gpu.* and --kv-cache.*: give one of them",
        ),
        ({"num_gpu_blocks_override": 10**12}, "does not fit into memory"),
        ({"chat_template": "/nowhere.jinja"}, "--chat-template /nowhere.jinja cannot be read"),
        ({"reasoning_parser": "gpt_oss"}, "choose it for both parsers"),
        ({"generation_config": "/nowhere"}, "--generation-config /nowhere"),
        ({"hang_timeout": 2.9}, "--hang-timeout 2.9 is too short"),
        ({"trace": "/nowhere/t.json"}, "--trace /nowhere/t.json: there is no folder /nowhere"),
        ({"trace": "/"}, "--trace / is a folder"),
        ({"kv_offload_gib": 64}, "--kv-offload-gib 64 does not fit into the machine's memory: .* GiB are free beside"),
        ({"kv_offload_gib": 1e-6}, "--kv-offload-gib 1e-06 holds nothing: one block of the KV cache takes"),
        ({"kv_offload_gib": 1, "enable_prefix_caching": False}, "--kv-offload-gib .* needs prefix caching"),
    ],
    ids=str,
)
def test_what_is_refused(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        resolved(make_model_folder(tmp_path), **values)
    assert "\n" not in str(error.value)


def test_many_rows_raise_the_default_token_budget(tmp_path: Path) -> None:
    scheduler = resolved(make_model_folder(tmp_path), max_num_seqs=4096).engine.scheduler
    assert scheduler.max_num_batched_tokens == 4096
    assert resolved(tmp_path, max_num_seqs=4).engine.scheduler.max_num_penalty_rows == 4


def test_default_sampling(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m")
    generation = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": None,
        "max_new_tokens": 7,
        "do_sample": True,
        "eos_token_id": 3,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    result = resolved(folder)
    assert result.frontend.default_sampling == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 7}
    assert result.engine.model.eos_token_ids == (3, 2)
    assert resolved(folder, generation_config="vllm").frontend.default_sampling == {}
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"temperature": 0.1}')
    assert resolved(folder, generation_config=str(other)).frontend.default_sampling == {"temperature": 0.1}
    (other / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(ConfigError, match="temperature"):
        resolved(folder, generation_config=str(other))


def test_keys_without_effect_are_named(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", a_note=1, _name_or_path="x", another={})
    generation = {"no_repeat_ngram_size": 3, "num_beams": 1, "temperature": 0.5, "stop_strings": ["x"], "min_length": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    result = resolved(folder)
    ignored = {"config.json": ("a_note", "another"), "generation_config.json": ("no_repeat_ngram_size", "stop_strings")}
    assert result.ignored == ignored
    report = format_report(result)
    assert "ignored        a_note, another of config.json" in report
    assert "ignored        no_repeat_ngram_size, stop_strings of generation_config.json" in report
    assert list(resolved(folder, generation_config="vllm").ignored) == ["config.json"]


def test_eos_is_what_any_file_names(tmp_path: Path) -> None:
    """generation_config.json, config.json and the tokenizer's; an id beyond the vocabulary cannot be sampled."""
    folder = make_model_folder(tmp_path / "m", eos_token_id=[4, 2])
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert resolved(folder).engine.model.eos_token_ids == (3, 4, 2)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    for number, wanted in ((7, (3, 4, 2, 7)), (4, (3, 4, 2)), (96, (3, 4, 2))):
        tokenizer = {"added_tokens": [{"id": number, "content": "<|end|>"}], "model": {"vocab": {}}}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        result = resolved(folder)
        assert result.engine.model.eos_token_ids == result.frontend.eos_token_ids == wanted
        assert f"ends at        {', '.join(f'token {eos}' for eos in wanted)}\n" in format_report(result)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"m/tokenizer\.json is not usable"):
        resolved(folder)


def test_a_gpu_takes_the_dtype_that_only_the_tensors_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "probe_device", lambda device: DeviceMemory("cuda", "G", 80 * GIB, 79 * GIB))
    folder = make_model_folder(tmp_path, "F16", torch_dtype=None)
    assert resolved(folder).engine.dtype == "float16"
    assert resolved(folder, load_format="dummy").engine.dtype == "bfloat16"


def test_what_tells_clients_apart(tmp_path: Path) -> None:
    """Configured keys where there are several, else addresses where anything wants to know."""
    folder = make_model_folder(tmp_path / "tiny")

    def apart(**values: object) -> tuple[str, bool]:
        frontend = resolved(folder, **values).frontend
        return frontend.tells_apart, frontend.separates_prefixes

    assert apart() == apart(api_key="a") == apart(api_key=["a", "a"]) == ("nobody", False)
    assert apart(api_key=["a", "b"]) == ("keys", True)
    assert apart(api_key=["a", "b"], share_prefix_cache=True) == ("keys", False)
    assert apart(api_key="a", max_requests_per_key=3) == ("keys", False)
    assert apart(scheduling_policy="fair") == apart(max_requests_per_key=3) == ("addresses", False)
    assert apart(scheduling_policy="fair", api_key="a") == ("nobody", False)
    assert resolved(folder, max_requests_per_key=3).engine.scheduler.max_requests_per_share == 3


def test_api_keys_come_from_flag_and_file_as_digests(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m")
    file = tmp_path / "keys"
    file.write_text("sk-b\n\n  sk-c  \n")
    frontend = resolved(folder, api_key="sk-a", api_key_file=str(file)).frontend
    assert frontend.api_key_digests == tuple(digest_of(key) for key in ("sk-a", "sk-b", "sk-c"))
    assert not any(b"sk-" in part.encode() for part in frontend.api_key_digests)
    file.write_text("\n \n")
    with pytest.raises(ConfigError, match="has no key in it"):
        resolved(folder, api_key_file=str(file))
    with pytest.raises(ConfigError, match="must not be blank"):
        resolved(folder, api_key=[" "])


def test_the_chat_template_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages }}")
    assert (
        resolved(make_model_folder(tmp_path / "m"), chat_template=str(file)).frontend.chat_template == "{{ messages }}"
    )
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        resolved(tmp_path / "m", chat_template=str(file))


def test_formats_come_from_the_chat_template(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("<tool_call> <think> </think>")
    frontend = resolved(folder).frontend
    assert (frontend.tool_call_parser, frontend.reasoning_parser) == ("hermes", "qwen3")
    frontend = resolved(folder, tool_call_parser="none", reasoning_parser="mistral").frontend
    assert (frontend.tool_call_parser, frontend.reasoning_parser) == (None, "mistral")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "missing required field `template`"),
        ("tokenizer_config.json", b'{"chat_template": 7}', "neither a text nor a list of templates"),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}', "chat template is not valid: .* .line 1."),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON: Input data was truncated\\.$"),
        ("chat_template.jinja", b"{{ messages", "chat template is not valid"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8 text"),
    ],
)
def test_a_chat_template_that_no_frontend_could_use(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    folder = make_model_folder(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as error:
        resolved(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_config_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    (folder / "tokenizer_config.json").mkdir()
    with pytest.raises(ConfigError) as error:
        resolved(folder)
    assert str(error.value) == f"{folder}/tokenizer_config.json cannot be read: Is a directory."


def test_dummy_weights_need_no_files(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    real = resolved(folder).plan.weight_bytes
    (folder / "model.safetensors").unlink()
    result = resolved(folder, load_format="dummy")
    assert result.engine.load_format == "dummy"
    assert result.plan.weight_bytes == real


def test_the_host_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the machine's memory: on a CPU beside the plan, on a GPU apart from it."""
    folder = make_model_folder(tmp_path)
    plain = resolved(folder)
    assert plain.engine.cache.num_host_blocks == plain.engine.step_capacities()["num_host_blocks"] == 0
    assert "Host tier" not in format_report(plain)
    result = resolved(folder, kv_offload_gib=0.5)
    cache = result.engine.cache
    assert cache.num_host_blocks == GIB // 2 // result.engine.kv_layout().block_bytes
    assert result.plan.host_bytes == GIB // 2
    assert "Host tier      512.0 MiB of the machine's memory: 131,072 blocks, 2,097,152 tokens" in format_report(result)

    memory = {"cpu": DeviceMemory("cpu", "CPU", 8 * GIB, 4 * GIB), "auto": DeviceMemory("cuda", "GPU", GIB, GIB)}
    monkeypatch.setattr(resolve_module, "probe_device", memory.__getitem__)
    assert resolved(folder, kv_offload_gib=4).plan.host_bytes == 4 * GIB
    with pytest.raises(ConfigError, match=r"machine's memory: 4\.0 GiB are free\.$"):
        resolved(folder, kv_offload_gib=4.1)


def test_the_report_names_what_matters(tmp_path: Path) -> None:
    result = resolved(make_model_folder(tmp_path / "tiny"), served_model_name=["my-name"])
    report = format_report(result)
    for part in (
        "my-name",
        "LlamaForCausalLM",
        "128 tokens",
        "weights",
        "KV cache",
        f"{result.plan.num_kv_tokens:,} tokens",
    ):
        assert part in report
    assert max(map(len, report.splitlines())) <= 110
