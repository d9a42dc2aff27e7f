"""The recipe "an architecture" of docs/extending.md, followed for `ToyForCausalLM`. It computes what Qwen3 computes, so
its tokens are compared with those of Qwen3 in transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engine_core.config import config_keys, hf_config
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import load_model_config
from gpu_workers.models.registry import MODELS
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.small_models import engine_config, save_model

NAME, MODEL_TYPE = "ToyForCausalLM", "toy"
PROMPT = [5, 9, 44, 7, 120]
NUM_TOKENS = 8


@pytest.fixture
def reference(tmp_path: Path) -> PreTrainedModel:
    """A Qwen3 in transformers. Its checkpoint in `tmp_path` says that it is the toy architecture."""
    model = save_model(tmp_path, model_type="qwen3")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "architectures": [NAME], "model_type": MODEL_TYPE}))
    return model


def register(patch: pytest.MonkeyPatch) -> None:
    """The lines that the recipe asks for beside the model file."""
    patch.setitem(MODELS, NAME, "tests.extending.toy_model:build_toy")
    patch.setitem(hf_config.MODEL_TYPES, NAME, MODEL_TYPE)
    patch.setitem(hf_config.FAMILY_DEFAULTS, NAME, {})
    patch.setitem(config_keys.UNDERSTOOD, NAME, config_keys.UNDERSTOOD["Qwen3ForCausalLM"])


def test_the_tokens_are_those_of_transformers(
    reference: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    assert load_model_config(tmp_path).architecture == NAME
    request = Request(PROMPT, NUM_TOKENS, row=0)
    Driver(engine_config(tmp_path)).run([request])
    with torch.no_grad():
        expected = reference.generate(torch.tensor([PROMPT]), max_new_tokens=NUM_TOKENS, do_sample=False)
    assert request.output == expected[0, len(PROMPT) :].tolist()


@pytest.mark.usefixtures("reference")
def test_an_architecture_without_these_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"asks for the architecture '{NAME}', which is not supported"):
        load_model_config(tmp_path)


@pytest.mark.usefixtures("reference")
def test_keys_that_change_what_is_computed_must_be_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "residual_multiplier": 0.5}))
    with pytest.raises(ConfigError, match=f"residual_multiplier 0.5 .* is not supported for {NAME}"):
        load_model_config(tmp_path)
