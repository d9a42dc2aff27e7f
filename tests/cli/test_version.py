"""Our version, installed or not."""

import importlib.metadata
import re

import pytest

from frontend.version import quire_version


def test_a_bare_source_tree_has_the_version_of_its_project_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    installed = quire_version()
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert quire_version() == installed
    assert re.fullmatch(r"\d+\.\d+\.\d+", installed)
