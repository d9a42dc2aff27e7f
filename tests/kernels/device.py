"""Where kernel tests run: natively on a GPU where there is one, else on the CPU through Triton's interpreter."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before kernels are imported
