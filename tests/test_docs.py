"""What the documents say of the repository is true: files that they name exist, links lead somewhere, and messages that
they quote are in the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_PAST_STATES = ("log.md",)
"""Pages that tell what was measured at the time, of files with the names that they had."""
FOLDERS = ("frontend", "engine_core", "gpu_workers", "kernels", "tests", "benchmarks", "scripts", "docs", "examples")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"[\w./-]*\w\.(?:py|sh|md)|(?:[\w-]+/)+")
_FROM_ROOT = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)}|demo_model)/[\w./-]*[\w/]")
_MODULE = re.compile(r"python -m ((?:benchmarks|scripts|tests|tools)\.[\w.]*\w)")
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
_LABEL = re.compile(r"\[[^\]\n]+\]\[([^\]\n]+)\]|(?<!\])\[([^\]\n]+)\](?![\[(])")
_DEFINED = re.compile(r"^\[([^\]]+)\]: ", re.MULTILINE)


def pages() -> list[Path]:
    return [page for page in PAGES if page.name not in OF_PAST_STATES]


@cache
def repository_paths() -> frozenset[str]:
    """Files and folders (with a slash behind), and each of them without its first folders."""
    paths: set[str] = set()
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        name = "/".join(parts) + ("/" if path.is_dir() else "")
        paths.update(name.split("/", skipped)[-1] for skipped in range(len(parts)))
    return frozenset(paths)


def named_paths(text: str) -> set[str]:
    """What stands as code and reads like a path of the repository, or like its end."""
    names = {code.split("::")[0] for code in _CODE.findall(_FENCED.sub("", text))}
    found = {name for name in names if _NAME.fullmatch(name)}
    return found | set(_FROM_ROOT.findall(text)) | {name.replace(".", "/") + ".py" for name in _MODULE.findall(text)}


def missing_paths(text: str) -> list[str]:
    known = repository_paths()
    return sorted(name for name in named_paths(text) if name not in known and f"{name}/" not in known)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    assert missing_paths(page.read_text()) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [inline or defined for inline, defined in _LINK.findall(text)]
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in pages() if _DEFINED.search(page.read_text())], ids=lambda p: p.name)
def test_labels_and_their_links_belong_together(page: Path) -> None:
    text = page.read_text()
    defined = set(_DEFINED.findall(text))
    used = {first or second for first, second in _LABEL.findall(_DEFINED.sub("", _CODE.sub("code", text)))}
    used |= {label for label in defined if f"`][{label}]" in text}
    assert used == defined


def anchors_of(page: Path) -> set[str]:
    """Those that GitHub gives to titles."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_missing_file_is_noticed() -> None:
    text = (
        "`kernels/nothing.py`, `nowhere.py`, `frontend/nothing/`, tests/nothing.py\n    python -m benchmarks.nothing\n"
    )
    assert missing_paths(text) == [
        "benchmarks/nothing.py",
        "frontend/nothing/",
        "kernels/nothing.py",
        "nowhere.py",
        "tests/nothing.py",
    ]
    assert missing_paths("`kernels/cuda.py`, `scheduler.py`, `frontend/parsers/`, `org/name`, `RUN/core-0.sock`") == []


@cache
def texts_of_the_product() -> tuple[str, ...]:
    """All texts of the product's code; a value that is put in is a NUL."""
    texts: list[str] = []
    for folder in ("frontend", "engine_core", "gpu_workers"):
        for file in ROOT.glob(f"{folder}/**/*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return tuple(texts)


def is_said(quote: str) -> bool:
    """Whether one text of the product has the quote's parts, which `...` separates, in this order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in quote.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts_of_the_product())


def quotes_of_troubleshooting() -> list[str]:
    """Messages stand as code that begins with a quotation mark."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r'`"([^`\n]+)"`', text)


@pytest.mark.parametrize("quote", quotes_of_troubleshooting())
def test_quoted_messages_are_in_the_code(quote: str) -> None:
    assert is_said(quote)


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert len(quotes_of_troubleshooting()) > 30
    assert is_said("Cannot listen on ... port")
    assert not is_said("Cannot listen on the moon")
    assert not is_said("port ... Cannot listen on")
