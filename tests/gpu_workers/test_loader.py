"""Checkpoints that fit, and each way in which one may not: one sentence that names the culprit."""

import json
import weakref
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_core.config.engine_config import EngineConfig
from engine_core.config.errors import ConfigError
from gpu_workers import loader
from gpu_workers.running.runner import Runner
from gpu_workers.weight_copier import StagedCopier
from kernels.cpu import packed_linear
from tests.gpu_workers.small_models import engine_config, save_model


def make_runner(config: EngineConfig) -> Runner:
    return Runner(config, config.places()[0])


def load(path: Path, **changes: object) -> list[tuple[int, int]]:
    """Loads and returns the progress reports."""
    reports: list[tuple[int, int]] = []
    make_runner(engine_config(path, **changes)).load(lambda done, total: reports.append((done, total)))
    return reports


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replaces (or with None removes) tensors; dots in names are written as __."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, file)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_model(tmp_path)
    return tmp_path


def test_progress_counts_bytes_up_to_the_total(path: Path) -> None:
    reports = load(path)
    done = [d for d, _ in reports]
    total = sum(t.numel() * t.element_size() for t in load_file(path / "model.safetensors").values())
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    assert {t for _, t in reports} == {total}


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    save_model(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    load(tmp_path)


def test_another_stored_dtype_is_converted(path: Path) -> None:
    tensors = {name: t.to(torch.bfloat16) for name, t in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors")
    load(path)


def test_what_is_computed_here_and_tied_copies_may_be_there(tmp_path: Path) -> None:
    save_model(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(
        tmp_path,
        lm_head__weight=embedding.clone(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
    )
    load(tmp_path)


def test_a_tied_model_may_have_its_matrix_under_the_other_name(tmp_path: Path) -> None:
    save_model(tmp_path, tie_word_embeddings=True)
    wanted = loaded_parameters(tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, model__embed_tokens__weight=None, lm_head__weight=embedding)
    assert torch.equal(loaded_parameters(tmp_path)["model.embed_tokens.weight"], wanted["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model__norm__weight", None, "no weights for model.norm.weight"),
        ("model__layers__1__self_attn__k_proj__weight", None, r"qkv_proj.weight \(its part k\)"),
        ("lm_head__weight", None, "no weights for lm_head.weight"),
        ("model__layers__7__mlp__up_proj__weight", torch.zeros(80, 48), "layers.7.mlp.up_proj.weight has no place"),
        ("model__layers__0__mlp__up_proj__bias", torch.zeros(80), "mlp.up_proj.bias has no place"),
        ("model__norm__weight", torch.zeros(47), r"model.norm.weight has the shape \[47\] .* needs \[48\]"),
        ("model__layers__0__self_attn__q_proj__weight", torch.zeros(95, 48), r"q_proj.weight has the shape \[95, 48\]"),
        ("model__layers__0__mlp__down_proj__weight", torch.zeros(80, 48), r"down_proj.weight has the shape \[80, 48\]"),
        ("model__embed_tokens__weight", torch.zeros(211), r"embed_tokens.weight has the shape \[211\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit(path: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    rewrite(path, **{name: tensor})
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_a_file_that_was_cut_off(path: Path, keep: int) -> None:
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load(path)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    save_model(tmp_path, max_shard_size="60KB")
    next(iter(sorted(tmp_path.glob("*-of-*.safetensors")))).unlink()
    with pytest.raises(ConfigError, match="missing"):
        load(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_model(tmp_path, max_shard_size="60KB")
    first, second = sorted(tmp_path.glob("*-of-*.safetensors"))[:2]
    both = load_file(first)
    name = next(iter(both))
    save_file({**load_file(second), name: both[name]}, second)
    with pytest.raises(ConfigError, match="is there a second time"):
        load(tmp_path)


def test_unknown_names_are_refused(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ConfigError, match=r"model\.layers\.2\..* has no place"):
        load(path)


def loaded_parameters(path: Path) -> dict[str, torch.Tensor]:
    """The weights as they are before they are packed."""
    model = make_runner(engine_config(path))._model.module
    loader._fill_from_files(model, path, lambda done, total: None)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_weights_staged_in_pieces_are_those_copied_directly(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = loaded_parameters(path)
    monkeypatch.setattr(loader, "make_copier", lambda device: StagedCopier(device, piece_bytes=1000, num_buffers=2))
    got = loaded_parameters(path)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dummy_weights_follow_the_seed(path: Path, dtype: str) -> None:
    def dummies(seed: int) -> dict[str, torch.Tensor]:
        model = make_runner(msgspec.structs.replace(engine_config(path), dtype=dtype))._model.module
        with torch.no_grad():
            loader._fill_with_noise(model, seed, lambda done, total: None)
        return {name: parameter.detach().float() for name, parameter in model.named_parameters()}

    first, again, other = dummies(-3), dummies(-3), dummies(4)
    for name, values in first.items():
        assert torch.equal(values, again[name])
        if values.dim() == 1:
            assert torch.equal(values, torch.ones_like(values)), "norms"
        else:
            assert not torch.equal(values, other[name])
            assert float(values.mean()) == pytest.approx(0.0, abs=0.002)
            assert float(values.std()) == pytest.approx(0.02, rel=0.1)


def test_a_loaded_weight_goes_when_it_is_packed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one of the linear layers' weights is there beside its packed form."""
    runner = make_runner(engine_config(path))
    loaded = {p.data_ptr(): weakref.ref(p) for p in runner._model.module.parameters() if p.dim() == 2}
    packed: list[int] = []

    def pack(weight: torch.Tensor) -> object:
        assert not [address for address in packed if loaded[address]() is not None]
        packed.append(weight.data_ptr())
        return packed_linear.pack_weight(weight)

    monkeypatch.setattr("kernels.cpu.pack_weight", pack)
    runner.load(lambda done, total: None)
    assert len(packed) == 3 * 4 + 1
