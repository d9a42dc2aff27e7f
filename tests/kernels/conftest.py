"""Small tensors gain nothing from several threads, and threads that wait for each other disturb other tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.kernels import device  # noqa: F401  # before any test file imports a kernel


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
