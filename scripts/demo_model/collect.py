"""Collects the documentation text and the catalogue of functions.

Sources: docstrings and signatures of the running interpreter's standard library, the reference pages of a Debian
package (`python3.11-doc`), and the docstrings of further permissively licensed Debian packages. The split is by module:
what belongs to a held-out module, or repeats one of its paragraphs, never reaches the training text.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

REFERENCE_PACKAGE = "python3.11-doc"
FURTHER_PACKAGES = {  # package -> licence
    "sphinx-doc": "BSD-2-Clause",
    "python-sympy-doc": "BSD-3-Clause",
    "python-pandas-doc": "BSD-3-Clause",
    "twisted-doc": "MIT",
    "python3-numpy": "BSD-3-Clause",
    "python3-scipy": "BSD-3-Clause",
    "python3-sympy": "BSD-3-Clause",
    "python3-pandas": "BSD-3-Clause",
    "python3-networkx": "BSD-3-Clause",
    "python3-sklearn": "BSD-3-Clause",
    "python3-twisted": "MIT",
    "python3-matplotlib": "PSF-based",
    "python3-django": "BSD-3-Clause",
    "python3-sqlalchemy": "MIT",
}
HELDOUT_ONE_IN = 16
ALWAYS_TRAIN = {"builtins", "functions", "stdtypes", "exceptions", "constants"}
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "turtledemo", "lib2to3", "ensurepip"}
MAX_DOCUMENT_CHARS = 400_000


def is_heldout(module: str) -> bool:
    """Decides from the top-level name alone, so that a package stays on one side of the split."""
    top = module.split(".")[0].lstrip("_")
    if top in ALWAYS_TRAIN:
        return False
    return int(hashlib.sha256(f"docs:{top}".encode()).hexdigest(), 16) % HELDOUT_ONE_IN == 0


def heldout_modules() -> list[str]:
    """The public standard library modules that no training text comes from."""
    return sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and is_heldout(name))


def download(packages: list[str], folder: Path) -> None:
    """Fetches and unpacks Debian packages into `folder`, one sub-folder each; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in tqdm(packages, desc="packages"):
        target = folder / package
        if target.exists():
            continue
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive.name, package], cwd=folder, check=True)
        archive.unlink()


def docstring_document(path: Path, module: str) -> str:
    """All docstrings of one source file, each under its dotted name and arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    parts: list[str] = []

    def visit(node: ast.AST, name: str, arguments: str) -> None:
        text = ast.get_docstring(node)  # type: ignore[arg-type]
        if text:
            parts.append(f"{name}{arguments}\n\n{text}")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, f"{name}.{child.name}", "")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}.{child.name}", f"({ast.unparse(child.args)})")

    visit(tree, module, "")
    return "\n\n".join(parts)


def source_documents(root: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(module, text) for every source file with docstrings below `root`."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        module = prefix + ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        text = docstring_document(path, module)
        if len(text) > 200:
            yield module, text


def page_documents(root: Path) -> Iterator[tuple[str, str]]:
    """(module or page name, text) for every packaged reStructuredText page below `root`."""
    for path in sorted(root.rglob("*.rst.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        library = path.parent.name == "library"
        name = path.name.removesuffix(".rst.txt")
        if len(text) > 200:
            yield (name if library else f"page:{path.parent.name}/{name}"), text


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def without_heldout(text: str, seen: set[str], mentions: re.Pattern[str]) -> str:
    """Drops the paragraphs that a held-out document has too, or that speak about a held-out module."""
    kept = [p for p in paragraphs(text) if not (key(p) in seen and len(p) >= 40) and not mentions.search(p)]
    return "\n\n".join(kept)


def key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def split_documents(folder: Path) -> tuple[list[str], list[str]]:
    """Training and held-out documents; the packages have been unpacked into `folder`."""
    stdlib = list(source_documents(Path(sysconfig.get_paths()["stdlib"])))
    stdlib += [(module, text) for module, text in builtin_documents() if len(text) > 200]
    pages = list(page_documents(folder / REFERENCE_PACKAGE))
    heldout = [text for module, text in stdlib + pages if not module.startswith("page:") and is_heldout(module)]
    train = [text for module, text in stdlib + pages if module.startswith("page:") or not is_heldout(module)]
    for package in tqdm(FURTHER_PACKAGES, desc="documents"):
        libraries = folder / package / "usr/lib/python3/dist-packages"
        train += [text for _, text in source_documents(libraries)] if libraries.exists() else []
        train += [text for _, text in page_documents(folder / package)]
    seen = {key(paragraph) for text in heldout for paragraph in paragraphs(text)}
    names = "|".join(map(re.escape, heldout_modules()))
    mentions = re.compile(rf":(?:mod|class|func|meth|data|attr|exc):`[!~]?(?:{names})\b|\b(?:{names})\.[A-Za-z_]\w*\(")
    unique: set[str] = set()
    kept = []
    for text in tqdm(train, desc="deduplicate"):
        text = deduplicate(without_heldout(text, seen, mentions), unique)
        if len(text) > 200:
            kept.append(text[:MAX_DOCUMENT_CHARS])
    return kept, heldout


def deduplicate(text: str, unique: set[str]) -> str:
    """Keeps the first of all longer paragraphs that are the same."""
    kept = []
    for paragraph in paragraphs(text):
        if len(paragraph) >= 80:
            if paragraph in unique:
                continue
            unique.add(paragraph)
        kept.append(paragraph)
    return "\n\n".join(kept)


def builtin_documents() -> Iterator[tuple[str, str]]:
    """(module, text) for the compiled modules, which have no source to read docstrings from."""
    from .catalogue import import_quietly, public_members

    for name in sorted(sys.stdlib_module_names):
        module = import_quietly(name)
        if module is None or str(getattr(module, "__file__", "")).endswith(".py"):
            continue
        parts = [f"{name}\n\n{module.__doc__ or ''}"]
        parts += [f"{entry}{signature}\n\n{doc}" for entry, signature, doc in public_members(module, name)]
        yield name, "\n\n".join(parts)
