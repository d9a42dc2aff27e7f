"""The catalogue of the standard library's functions: dotted name, signature, one-sentence summary.

It looks at the running interpreter and at the packaged reference pages. It knows nothing of chats.
"""

# ruff: noqa: E501, SIM905 - word lists read best as text

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .collect import is_heldout, page_documents

UNWANTED = set(
    "antigravity this idlelib turtle turtledemo tkinter test lib2to3 ensurepip msilib posix nt genericpath sre_constants "
    "sre_parse".split()
)
SUBMODULES = (
    "os.path collections.abc concurrent.futures email.message email.utils email.policy http.client http.server "
    "http.cookies http.cookiejar importlib.metadata importlib.resources importlib.util json.decoder json.encoder "
    "logging.config logging.handlers multiprocessing.pool multiprocessing.shared_memory unittest.mock urllib.parse "
    "urllib.request urllib.error urllib.robotparser xml.dom.minidom xml.etree.ElementTree xml.sax.saxutils "
    "asyncio.subprocess curses.ascii ctypes.util dbm.dumb encodings.idna wsgiref.util wsgiref.headers xmlrpc.client"
).split()
MAX_SUMMARY_CHARS = 200
# What a model that learns for half an hour on a CPU is taught: functions that people meet often.
CORE_MODULES = set(
    "builtins math json re random itertools functools textwrap shutil statistics bisect heapq copy time glob html fnmatch "
    "calendar string secrets base64 pprint".split()
)
CORE_CLASSES = {"str", "list", "dict", "set"}


@dataclass(frozen=True)
class Entry:
    """One function, method or class that can be asked about."""

    name: str
    module: str
    signature: str  # "(text, width=70)" or "" where unknown
    summary: str
    from_docstring: bool

    def is_callable(self) -> bool:
        """Functions and methods with a docstring, judged by the spelling of the name."""
        return self.from_docstring and self.name.split(".")[-1][0].islower()

    def is_core(self) -> bool:
        parts = self.name.split(".")
        if self.module == "builtins":
            return self.is_callable() and (len(parts) == 1 or parts[0] in CORE_CLASSES)
        return self.is_callable() and self.module in CORE_MODULES and len(parts) == 2


def import_quietly(name: str) -> ModuleType | None:
    """Imports a standard library module, or returns None where this platform lacks it."""
    if name.split(".")[0].lstrip("_") in UNWANTED or name.endswith("__main__"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None


def signature_of(value: object) -> str:
    """The signature as text, or an empty string where there is none or it shows an address."""
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):
        return ""
    text = re.sub(r"^\((?:self|cls|\$self|\$module)(?:, /)?(?:, )?", "(", text)
    return "" if " at 0x" in text or "<" in text else text


def public_members(module: ModuleType, name: str) -> Iterator[tuple[str, str, str]]:
    """(dotted name, signature, docstring) of a module's public functions, classes and their own methods."""
    prefix = "" if name == "builtins" else f"{name}."
    exported = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    for member in sorted(exported):
        value = getattr(module, member, None)
        home = getattr(value, "__module__", None) or name
        same = home.split(".")[0].lstrip("_") == name.split(".")[0].lstrip("_") or home == "builtins"
        if not same and not (inspect.isroutine(value) and home.startswith("_")):
            continue
        if inspect.isclass(value):
            if home == "builtins" and name != "builtins":  # another name of a built-in class
                continue
            if isinstance(value.__doc__, str):
                yield f"{prefix}{member}", signature_of(value), inspect.cleandoc(value.__doc__)
            for method, function in sorted(vars(value).items()):
                doc = getattr(function, "__doc__", None)
                if not method.startswith("_") and callable(getattr(value, method, None)) and isinstance(doc, str):
                    yield f"{prefix}{member}.{method}", signature_of(getattr(value, method)), inspect.cleandoc(doc)
        elif callable(value) and isinstance(getattr(value, "__doc__", None), str):
            yield f"{prefix}{member}", signature_of(value), inspect.cleandoc(value.__doc__)


def clean_markup(text: str) -> str:
    """Plain words from reStructuredText: roles, emphasis and literals become their text."""
    text = re.sub(r":[a-z:+-]+:`[!~]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"`([^`<]*?)(?:\s*<[^`>]*>)?`_*", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^*\s][^*]*?)\*{1,2}(?![\w*])", r"\1", text)
    return " ".join(text.replace("\\", "").split())


def first_sentence(text: str) -> str:
    """The text up to the first sentence end that a capital letter, or nothing, follows."""
    match = re.search(r"(?<!e\.g)(?<!i\.e)(?<!etc)[.!?](?=\s+[A-Z`\"'(]|\s*$)", text)
    return text[: match.end()] if match else text


def summary_of(doc: str) -> str:
    """The first sentence of a docstring as plain words, or an empty string where it says nothing useful."""
    blocks = [b for b in re.split(r"\n\s*\n", doc) if b.strip()]
    if blocks and re.match(r"^[\w.]+\(.*", blocks[0]):  # old style: the signature stands first
        head = blocks[0].split("\n")
        rest = [line for line in head if not re.match(r"^\s*[\w.]+\([^)]*\)?.*(->|--|$)", line)]
        blocks[0] = "\n".join(rest)
        blocks = [b for b in blocks if b.strip()]
    if not blocks:
        return ""
    text = first_sentence(clean_markup(blocks[0])).rstrip(" :;,")
    if not text or not text[0].isalpha() or not text.isascii() or re.search(r"[.!?] [a-z]|\*|:[a-z]+:|->", text):
        return ""
    text = text[0].upper() + text[1:]
    text = text if text[-1] in ".!?" else text + "."
    words = text.split()
    return text if 4 <= len(words) <= 34 and len(text) <= MAX_SUMMARY_CHARS and "__" not in text else ""


DIRECTIVE = re.compile(
    r"^( *)\.\. (?:function|method|class|classmethod|staticmethod|coroutinefunction):: ([\w.]+)(\([^\n]*\))?[^\n]*\n"
    r"(?:\1 +[^\n]*\n)*?\s*\n\1 {2,4}(\S[^\n]*(?:\n\1 +\S[^\n]*)*)",
    re.MULTILINE,
)


def page_entries(folder: Path) -> Iterator[Entry]:
    """Entries from the reference pages, for what has no docstring."""
    for page, text in page_documents(folder):
        if page.startswith("page:") or is_heldout(page) or page.split(".")[0] in UNWANTED:
            continue
        module = re.search(r"^\.\. (?:module|currentmodule):: ([\w.]+)", text, re.MULTILINE)
        prefix = f"{module.group(1)}." if module else ""
        if not module and page not in {"functions", "stdtypes"}:
            continue
        for match in DIRECTIVE.finditer(text):
            name, signature, body = match.group(2), match.group(3) or "", match.group(4)
            if match.group(1) and "." not in name:  # a method whose class stands above it
                continue
            summary = "" if body.startswith(("..", "*")) else summary_of(re.sub(r"\s*\n\s*", " ", body))
            if summary and not name.startswith("_"):
                name = name if name.startswith(prefix) else prefix + name
                signature = signature.replace("\\", "").replace("[", "").replace("]", "")
                yield Entry(name, prefix.rstrip(".") or "builtins", signature, summary, False)


def build_catalogue(folder: Path) -> list[Entry]:
    """All entries of the training modules, one for each dotted name, docstrings first."""
    entries: dict[str, Entry] = {}
    public = [n for n in sorted(sys.stdlib_module_names) if not n.startswith("_")]
    for name in [*public, *SUBMODULES]:
        module = None if is_heldout(name) else import_quietly(name)
        if module is None:
            continue
        for entry, signature, doc in public_members(module, name):
            summary = summary_of(doc)
            if summary and entry not in entries:
                entries[entry] = Entry(entry, name, signature, summary, True)
    for page_entry in page_entries(folder):
        entries.setdefault(page_entry.name, page_entry)
    return sorted(entries.values(), key=lambda e: e.name)
