"""`quire serve` on everything that cannot be served: one line on stderr, exit code 2, nothing started, nothing left."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.models import TINY_CONFIG, make_model_folder, tiny_tensors, write_safetensors


def missing(folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    folder.mkdir()


def corrupt_json(folder: Path) -> None:
    make_model_folder(folder)
    (folder / "config.json").write_text('{"architectures": [')


def unsupported(folder: Path) -> None:
    make_model_folder(folder, architectures=["MambaForCausalLM"])


def without_weights(folder: Path) -> None:
    make_model_folder(folder)
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    make_model_folder(folder)
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def corrupt_header(folder: Path) -> None:
    make_model_folder(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def a_git_lfs_pointer(folder: Path) -> None:
    make_model_folder(folder)
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 21642984\n"
    )


def other_weights(folder: Path) -> None:
    make_model_folder(folder)
    config = {**TINY_CONFIG, "vocab_size": 97}
    write_safetensors(folder / "model.safetensors", tiny_tensors(config))


def too_large(folder: Path) -> None:
    """Weights of a terabyte; the file is sparse."""
    sizes = {"vocab_size": 2**21, "hidden_size": 2**17, "num_attention_heads": 1024, "num_key_value_heads": 1024}
    make_model_folder(folder, **sizes, intermediate_size=64, num_hidden_layers=1)


def broken_template(folder: Path) -> None:
    make_model_folder(folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}")


Case = tuple[Callable[[Path], None], list[str], str]
CASES: dict[str, Case] = {
    "missing": (missing, [], "There is no model folder"),
    "empty": (empty, [], "has no config.json"),
    "corrupt JSON": (corrupt_json, [], "is not valid JSON"),
    "unsupported architecture": (unsupported, [], "MambaForCausalLM"),
    "no weights": (without_weights, [], "has no weights"),
    "truncated": (truncated, [], "is truncated"),
    "corrupt header": (corrupt_header, [], "header is cut off or damaged"),
    "LFS pointer": (a_git_lfs_pointer, [], "header is cut off or damaged"),
    "other weights": (other_weights, [], "do not belong together"),
    "too large": (too_large, [], "does not fit into memory"),
    "too little cache": (make_model_folder, ["--kv-cache-memory-bytes", "4K"], "would do"),
    "too much cache": (make_model_folder, ["--kv-cache-memory-bytes", "900T"], "does not fit into memory"),
    "no GPU": (make_model_folder, ["--device", "cuda"], "--device cuda"),
    "bad address": (make_model_folder, ["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1 port 8000"),
    "bad name": (make_model_folder, ["--host", "no such host"], "Cannot listen on no such host"),
    "broken template": (broken_template, [], "The chat template is not valid"),
    "bad trace": (make_model_folder, ["--trace", "/nowhere/t.json"], "--trace /nowhere/t.json"),
    "bad template": (make_model_folder, ["--chat-template", "/nowhere"], "--chat-template /nowhere"),
}


def quire(*arguments: str, temp: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TMPDIR": str(temp),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(temp / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-P", "-m", "frontend.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_line_and_exit_code_2(tmp_path: Path, case: Case) -> None:
    make, flags, reason = case
    temp = tmp_path / "temp"
    temp.mkdir()
    make(tmp_path / "model")
    result = quire("serve", str(tmp_path / "model"), *flags, temp=temp)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("quire: ")
    assert reason in result.stderr
    assert result.stdout == ""
    assert list(temp.glob("quire-*")) == []


def test_a_port_in_use(tmp_path: Path) -> None:
    """Also where its owner allows sharing, as another Quire does."""
    make_model_folder(tmp_path / "model")
    for share in (0, 1):
        with socket.socket() as owner:
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
            owner.bind(("127.0.0.1", 0))
            owner.listen()
            port = owner.getsockname()[1]
            result = quire("serve", str(tmp_path / "model"), "--port", str(port), temp=tmp_path)
        assert result.returncode == 2
        assert result.stderr == f"quire: Cannot listen on 127.0.0.1 port {port}: Address already in use.\n"
        assert list(tmp_path.glob("quire-*")) == []


def test_a_response_store_that_cannot_be_used(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "model")
    store = tmp_path / "text"
    store.write_text("Not a database.\n" * 100)
    result = quire("serve", str(tmp_path / "model"), "--port", "0", "--response-store", str(store), temp=tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"quire: The response store {store} cannot be used: file is not a database.\n"
    assert list(tmp_path.glob("quire-*")) == []


def test_a_hub_name_that_cannot_be_had(tmp_path: Path) -> None:
    result = quire("serve", "nobody/no-such-model", temp=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "not in the local cache and the Hugging Face hub cannot be reached" in result.stderr


def test_a_hub_name_in_the_local_cache(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "hub" / "models--some--model"
    make_model_folder(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    result = quire("plan", "some/model", temp=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "some/model" in result.stdout


def test_the_supervisor_stays_light() -> None:
    """Neither torch nor Sanic nor ZeroMQ: what only waits should cost nothing to start."""
    code = (
        "import sys, frontend.cli.commands; print(sorted({'torch', 'sanic', 'zmq', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_plan_prints_and_starts_nothing(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "model")
    result = quire("plan", str(tmp_path / "model"), temp=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "KV cache" in result.stdout
    assert list(tmp_path.glob("quire-*")) == []


@pytest.mark.slow
def test_any_flag_without_a_value(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "--max-num-seqs": "0",
        "--block-size": "-1",
        "--max-num-waiting": "0",
        "--max-num-penalty-rows": "0",
        "--port": "1.5",
        "--gpu-memory-utilization": "nan",
    }
    for flag, value in values.items():
        result = quire("serve", str(tmp_path), f"{flag}={value}", temp=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith(f"quire: {flag}: ")
