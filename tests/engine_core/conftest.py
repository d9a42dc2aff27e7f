"""An engine core for each test that asks for one."""

from collections.abc import Iterator

import pytest

from tests.engine_core.core_harness import Harness


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.close()
