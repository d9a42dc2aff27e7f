"""Chooses where Triton kernels run before anything (transformers, say) imports Triton, whose own functions are compiled
or interpreted from then on. Hypothesis takes no example's time, which says nothing where processes share a core."""

import pytest
from hypothesis import HealthCheck, settings

from tests.kernels import device  # noqa: F401

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about a second; scripts/test.sh --fast leaves it out")
