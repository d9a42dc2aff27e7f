"""Chooses where Triton kernels run before anything (transformers, say) imports Triton, whose own functions are compiled
or interpreted from then on."""

from tests.kernels import device  # noqa: F401
