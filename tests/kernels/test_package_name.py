"""transformers probes for an optional package with the name of our folder: ours must not be taken for it."""

import subprocess
import sys
from pathlib import Path

import pytest

import kernels


def test_the_package_is_empty() -> None:
    assert Path(kernels.__file__ or "").read_text() == ""


@pytest.mark.slow
def test_transformers_imports_and_runs_with_our_folder_on_the_path() -> None:
    program = (
        "import kernels, transformers\n"
        "from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
        "config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        " num_attention_heads=1)\n"
        "LlamaForCausalLM(config)\n"
    )
    root = Path(kernels.__file__ or "").parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
