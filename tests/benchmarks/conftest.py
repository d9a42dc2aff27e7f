"""Kernels that are imported from here on know where they run."""

from tests.kernels import device  # noqa: F401 - sets the environment, before anything imports Triton
