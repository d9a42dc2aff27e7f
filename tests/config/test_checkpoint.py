"""Safetensors headers: what is read from good files, and one sentence for every kind of bad one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from engine_core.config import checkpoint
from engine_core.config.checkpoint import MAX_HEADER_BYTES, hold_the_same, read_checkpoint, read_header, weight_files
from engine_core.config.consistency import EMBEDDING, OUTPUT, with_checkpoint
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import load_model_config
from engine_core.planning.model_memory import num_parameters, weight_bytes
from tests.config.models import make_model_folder, safetensors_header, write_safetensors


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros((), np.float16), "c": np.zeros((0, 4), np.int64)}, file)
    tensors = read_header(file)
    assert {name: (info.dtype, info.shape, info.num_bytes) for name, info in tensors.items()} == {
        "a": ("F32", (3, 5), 60),
        "b": ("F16", (), 2),
        "c": ("I64", (0, 4), 0),
    }
    assert tensors["a"].bytes_at(2) == 30


def test_an_index_names_the_shards(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": ("F32", [2])})
    write_safetensors(tmp_path / "two.safetensors", {"b": ("F32", [3])})
    write_safetensors(tmp_path / "other.safetensors", {"c": ("F32", [3])})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert set(read_checkpoint(tmp_path)) == {"a", "b"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names two\.safetensors, which is missing"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "x.bin", "", "a/b.safetensors"])
def test_an_index_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConfigError, match="which is not a safetensors file of that folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_a_bad_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError):
        read_checkpoint(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        read_checkpoint(tmp_path)


def raw_file(header: object, data_bytes: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


BAD_FILES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length beyond the file": (100).to_bytes(8, "little") + b"{}",
    "length beyond the limit": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
    "length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{x",
    "no UTF-8": (2).to_bytes(8, "little") + b"\xff\xfe",
    "deeply nested": raw_file([])[:0] + (200000).to_bytes(8, "little") + b"[" * 200000,
    "not an object": raw_file([]),
    "entry is no object": raw_file({"a": 3}),
    "no dtype": raw_file({"a": entry(dtype=None)}, 8),
    "unknown dtype": raw_file({"a": entry(dtype="F7")}, 8),
    "shape is no list": raw_file({"a": entry(shape="2")}, 8),
    "shape is negative": raw_file({"a": entry(shape=[-2])}, 8),
    "shape is huge": raw_file({"a": entry(shape=[2**62])}, 8),
    "shape is boolean": raw_file({"a": entry(shape=[True, 2])}, 8),
    "three offsets": raw_file({"a": entry(data_offsets=[0, 8, 9])}, 8),
    "offsets run backwards": raw_file({"a": entry(data_offsets=[8, 0])}, 8),
    "size does not fit the shape": raw_file({"a": entry(shape=[3])}, 8),
    "a hole": raw_file({"a": entry(data_offsets=[4, 12])}, 12),
    "an overlap": raw_file({"a": entry(), "b": entry(data_offsets=[4, 12])}, 12),
    "truncated": raw_file({"a": entry()}, 7),
    "too long": raw_file({"a": entry()}, 9),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors") as error:
        read_header(file)
    assert "\n" not in str(error.value)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
@settings(max_examples=200)
def test_a_damaged_file_gives_a_sentence_or_the_same_amount_of_data(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    header, size = safetensors_header({"a": ("F32", [3, 2]), "b": ("BF16", [7])})
    content = bytearray(header + bytes(size))
    content[position % len(header)] = value
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(content[: cut % (2 * len(content))])
    try:
        tensors = read_header(file)
    except ConfigError:
        return
    assert sum(info.num_bytes for info in tensors.values()) == size


def test_config_and_weights_must_belong_together(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    model, tensors = load_model_config(folder), read_checkpoint(folder)
    with_checkpoint(model, tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with pytest.raises(ConfigError, match=f"no tensor {name}"):
            with_checkpoint(model, {key: info for key, info in tensors.items() if key != name})
    with pytest.raises(ConfigError, match="lack layer 1"):
        with_checkpoint(model, {key: info for key, info in tensors.items() if "layers.1." not in key})
    other = load_model_config(make_model_folder(tmp_path / "other", vocab_size=97))
    with pytest.raises(ConfigError, match="do not belong together"):
        with_checkpoint(other, tensors)


def save(file: Path, **tensors: np.ndarray) -> None:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, file)


def test_which_files_have_the_weights(tmp_path: Path) -> None:
    """The whole file, then those of the index, then all."""
    for name in ("a.safetensors", "b.safetensors"):
        save(tmp_path / name, a=np.zeros(2))
    assert weight_files(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert weight_files(tmp_path) == [tmp_path / "b.safetensors"]
    index.write_text('{"weight_map": {"a": "c.safetensors"}}')
    with pytest.raises(ConfigError, match=r"names c\.safetensors, which is missing; that file would do, or no index"):
        weight_files(tmp_path)
    save(tmp_path / "model.safetensors", a=np.zeros(2))
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", x=np.zeros(2), y=np.zeros(2))
    save(tmp_path / "b.safetensors", y=np.zeros(2))
    with pytest.raises(ConfigError) as error:
        read_checkpoint(tmp_path)
    assert (
        str(error.value)
        == f"{tmp_path}/b.safetensors: 'y' is there a second time; {tmp_path}/a.safetensors has it too."
    )


@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_tensors_are_compared_by_their_bytes(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_COMPARED_AT_ONCE", piece)
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    others = values.copy()
    others[4, 5] += 1
    save(tmp_path / "a.safetensors", first=np.ones(3, np.float16), one=values, late=others, flat=values.reshape(6, 5))
    save(tmp_path / "b.safetensors", same=values, wide=values.astype(np.float64))
    tensors = read_checkpoint(tmp_path)
    assert hold_the_same(tensors["one"], tensors["same"])
    for other in ("late", "flat", "wide", "first"):
        assert not hold_the_same(tensors["one"], tensors[other])


def folder_of(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """The tiny model with its embedding and output matrix as given."""
    folder = make_model_folder(path, **config)
    whole = {name: np.zeros(info.shape, np.float16) for name, info in read_checkpoint(folder).items()}
    kept = {name: tensor for name, tensor in whole.items() if name not in (EMBEDDING, OUTPUT)}
    save_file({**kept, **tensors}, folder / "model.safetensors")
    return folder


MATRIX = np.arange(96 * 32, dtype=np.float16).reshape(96, 32)


@pytest.mark.parametrize(
    ("tensors", "is_tied"),
    [
        ({EMBEDDING: MATRIX}, True),
        ({EMBEDDING: MATRIX, OUTPUT: MATRIX.copy()}, True),
        ({OUTPUT: MATRIX}, True),
        ({EMBEDDING: MATRIX, OUTPUT: -MATRIX}, False),
        ({EMBEDDING: MATRIX, OUTPUT: MATRIX.astype(np.float32)}, False),
    ],
)
def test_whether_the_output_matrix_is_the_embedding(
    tmp_path: Path, tensors: dict[str, np.ndarray], is_tied: bool
) -> None:
    """What the weights say counts, and the memory plan knows it."""
    folder = folder_of(tmp_path, {"tie_word_embeddings": True}, tensors)
    stored = read_checkpoint(folder)
    model = with_checkpoint(load_model_config(folder), stored)
    assert model.tie_word_embeddings == is_tied
    assert weight_bytes(model, stored, 2) == weight_bytes(model, None, 2) == 2 * num_parameters(model)


def test_an_output_matrix_of_another_shape(tmp_path: Path) -> None:
    tensors = {EMBEDDING: MATRIX, OUTPUT: MATRIX[:90]}
    folder = folder_of(tmp_path, {"tie_word_embeddings": True}, tensors)
    with pytest.raises(ConfigError, match=r"lm_head.weight has the shape \[90, 32\] instead of \[96, 32\]"):
        with_checkpoint(load_model_config(folder), read_checkpoint(folder))


@pytest.mark.parametrize("stored", ["F16", "BF16", "F32"])
def test_where_config_json_names_no_dtype_the_tensors_do(tmp_path: Path, stored: str) -> None:
    folder = make_model_folder(tmp_path, stored, torch_dtype=None)
    assert load_model_config(folder).dtype is None
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    assert with_checkpoint(load_model_config(folder), read_checkpoint(folder)).dtype == names[stored]
    folder = make_model_folder(tmp_path, stored, torch_dtype="torch.float16")
    assert with_checkpoint(load_model_config(folder), read_checkpoint(folder)).dtype == "float16"
