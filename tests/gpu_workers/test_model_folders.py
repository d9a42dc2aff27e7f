"""A folder means what transformers takes it to mean: the same log-probabilities, or one sentence."""

import random
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine_core.config.errors import ConfigError
from frontend.cli.flags import make_args
from frontend.cli.resolve import read_model
from tests.gpu_workers.model_folders import EQUAL, REFUSED
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.small_models import SHAPE, engine_config, save_model

PROMPT = random.Random(0).choices(range(1, SHAPE["vocab_size"]), k=80)
TOLERANCE = 1e-4
"""Of log-probabilities in fp32, whose logits differ by rounding."""
SEEN = 5e-4
"""A difference that no rounding makes."""


def ours(folder: Path) -> torch.Tensor:
    """Log-probabilities [79] of the prompt's tokens after the first."""
    model = read_model(make_args({"model": str(folder)})).config
    request = Request(PROMPT, 1, 0, {"prompt_logprobs": 0})
    Driver(msgspec.structs.replace(engine_config(folder), model=model)).run([request])
    return torch.tensor([score["logprob"] for score in request.prompt_logprobs])


@torch.no_grad()
def theirs(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logprobs = model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]


@pytest.mark.parametrize("name", EQUAL)
def test_what_transformers_computes(name: str, tmp_path: Path) -> None:
    oddity = EQUAL[name]
    save_model(tmp_path, **oddity.model)
    plain = ours(tmp_path)
    oddity.edit(tmp_path)
    odd, wanted = ours(tmp_path), theirs(tmp_path)
    assert float((odd - wanted).abs().max()) < TOLERANCE
    assert (float((odd - plain).abs().max()) > SEEN) == oddity.counts


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    model, edit, sentence = REFUSED[name]
    save_model(tmp_path, **model)
    read_model(make_args({"model": str(tmp_path)}))
    edit(tmp_path)
    with pytest.raises(ConfigError) as error:
        read_model(make_args({"model": str(tmp_path)}))
    assert sentence in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
