"""Model folders of shapes: what they say is what the engine reads, and each id has a text of its own."""

import json
from pathlib import Path

import pytest

from benchmarks.shapes import SHAPES, write_model_folder
from engine_core.config.model_config import SUPPORTED_ARCHITECTURES, load_model_config
from frontend.detokenizer import Detokenizer
from frontend.tokenizer import TextTokenizer


@pytest.mark.parametrize(
    "shape", [shape for shape, config in SHAPES.items() if config["architectures"][0] in SUPPORTED_ARCHITECTURES]
)
def test_the_engine_reads_the_folder(shape: str, tmp_path: Path) -> None:
    model = load_model_config(write_model_folder(shape, tmp_path))
    config = SHAPES[shape]
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "rms_norm_eps"):
        assert getattr(model, name) == config[name], name
    assert model.rope.theta == config["rope_theta"]
    assert model.tie_word_embeddings == config["tie_word_embeddings"]
    assert model.eos_token_ids == ()


def test_llama_rope_is_scaled_by_frequency(tmp_path: Path) -> None:
    rope = load_model_config(write_model_folder("llama8b", tmp_path)).rope
    assert (rope.rope_type, rope.factor, rope.low_freq_factor, rope.high_freq_factor) == ("llama3", 8.0, 1.0, 4.0)
    assert rope.original_max_position_embeddings == 8192


def test_every_token_is_streamed_as_text(tmp_path: Path) -> None:
    folder = write_model_folder("tiny-llama8b", tmp_path)
    tokenizer = TextTokenizer.from_folder(str(folder))
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    detokenizer = Detokenizer(tokenizer, [3, 4], skip_special_tokens=True)
    ids = [5, 5, 0, vocab_size - 1]
    assert [detokenizer.step(token_id) for token_id in ids] == [f"t{token_id} " for token_id in ids]
