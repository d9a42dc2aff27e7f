"""One frontend before a stub core for all tests of a module; each test says what the core answers."""

from collections.abc import Iterator

import pytest

from tests.frontend.support import Setup, running_setup


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with running_setup(tmp_path_factory.mktemp("run")) as setup:
        yield setup


@pytest.fixture
def setup(module_setup: Setup) -> Iterator[Setup]:
    module_setup.forget()
    yield module_setup
    module_setup.core.resume()
