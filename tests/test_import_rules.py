"""Who may import whom, read from the source: the arrows of docs/architecture.md, imports inside functions included."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("frontend", "engine_core", "gpu_workers", "kernels", "quire", "tests", "benchmarks", "scripts")

# Folder -> what of ours it may import beside itself. The longest folder that matches a file counts.
ALLOWED = {
    "engine_core/ipc": (),
    "engine_core/config": (),
    "engine_core/planning": ("engine_core.ipc", "engine_core.config"),
    "engine_core": (),
    "frontend": ("engine_core.ipc", "engine_core.config", "engine_core.planning"),
    "gpu_workers": ("engine_core.ipc", "engine_core.config", "kernels"),
    "kernels": (),
    "quire.py": ("frontend", "engine_core.ipc", "engine_core.config"),
}
HEAVY = {
    "torch": ("gpu_workers", "kernels"),
    "triton": ("gpu_workers", "kernels"),
    "sanic": ("frontend",),
    "transformers": (),  # AutoTokenizer and models load torch; only tests and scripts compare with them
}
EXCEPTIONS = {("frontend/tokenizer.py", "transformers")}  # PreTrainedTokenizerFast alone, which loads no torch
BANNED_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
BANNED_NAMES = ("eval", "exec")
BANNED_CALLS = (("torch", "load"), ("torch", "hub"), ("yaml", "load"), ("yaml", "unsafe_load"), ("np", "load"))


def source_files() -> list[str]:
    files = [
        path
        for folder in ("frontend", "engine_core", "gpu_workers", "kernels")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    return sorted(str(path.relative_to(ROOT)) for path in [*files, ROOT / "quire.py"])


def imported_modules(file: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a file may load, as a full dotted name; `from a import b` counts as a.b."""
    package = file.removesuffix(".py").replace("/", ".").split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            # A registry's import: its constant part must obey the rules too.
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.JoinedStr) and argument.values:
                argument = argument.values[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value.rstrip("."), node.lineno


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def violations(file: str, source: str) -> list[str]:
    """What is wrong with one file, as sentences."""
    tree = ast.parse(source, file)
    folder = max((key for key in ALLOWED if file == key or file.startswith(key + "/")), key=len)
    own = folder.removesuffix(".py").replace("/", ".")
    found = []
    for module, line in imported_modules(file, tree):
        top = module.split(".")[0]
        if top in OURS and not any(is_within(module, prefix) for prefix in (own, *ALLOWED[folder])):
            found.append(f"{file}:{line} imports {module}, which {folder} may not")
        if top in HEAVY and not file.startswith(HEAVY[top]) and (file, top) not in EXCEPTIONS:
            found.append(f"{file}:{line} imports {top}")
        if top in BANNED_MODULES:
            found.append(f"{file}:{line} imports {top}: no code comes in as data")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BANNED_NAMES:
                found.append(f"{file}:{node.lineno} calls {node.func.id}")
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                call = (node.func.value.id, node.func.attr)
                if call in BANNED_CALLS:
                    found.append(f"{file}:{node.lineno} calls {'.'.join(call)}")
    return found


@pytest.mark.parametrize("file", source_files())
def test_source_obeys_the_rules(file: str) -> None:
    assert violations(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("frontend/x.py", "import engine_core.scheduler"),
        ("frontend/x.py", "from engine_core import scheduler"),
        ("frontend/x.py", "def f():\n    import torch"),
        ("frontend/x.py", "from gpu_workers import worker"),
        ("frontend/a/x.py", "from ...engine_core.scheduler import Scheduler"),
        ("engine_core/x.py", "from frontend.client import EngineClient"),
        ("engine_core/x.py", "import sanic"),
        ("engine_core/x.py", "import importlib\nimportlib.import_module(f'gpu_workers.models.{name}')"),
        ("engine_core/ipc/x.py", "from engine_core.config.errors import ConfigError"),
        ("engine_core/config/x.py", "from engine_core.ipc.control import Drain"),
        ("engine_core/config/x.py", "from engine_core.planning.memory_plan import MemoryPlan"),
        ("engine_core/planning/x.py", "from engine_core.scheduler import Scheduler"),
        ("gpu_workers/x.py", "from engine_core.scheduler import Scheduler"),
        ("gpu_workers/x.py", "from engine_core.planning.memory_plan import MemoryPlan"),
        ("gpu_workers/x.py", "import pickle"),
        ("gpu_workers/x.py", "torch.load(path)"),
        ("kernels/x.py", "from gpu_workers.worker import Worker"),
        ("kernels/x.py", "eval('1')"),
        ("quire.py", "from gpu_workers import worker"),
    ],
)
def test_the_rules_see_what_breaks_them(file: str, source: str) -> None:
    assert violations(file, source)


def test_packages_that_must_stay_empty() -> None:
    """Importing a leaf loads nothing else; transformers takes a `kernels` package with content for another one."""
    for file in (
        "engine_core/__init__.py",
        "engine_core/ipc/__init__.py",
        "engine_core/config/__init__.py",
        "engine_core/planning/__init__.py",
        "kernels/__init__.py",
    ):
        assert (ROOT / file).read_text().strip() == "", file


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    names = {Path(file).parts[0].removesuffix(".py") for file in source_files()}
    assert not names & set(sys.stdlib_module_names)
