"""Our own version: from the installed package, or from pyproject.toml where the source tree itself is run."""

import importlib.metadata
import tomllib
from pathlib import Path


def quire_version() -> str:
    try:
        return importlib.metadata.version("quire")
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        version: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return version
