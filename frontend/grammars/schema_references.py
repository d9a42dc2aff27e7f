"""What a JSON schema's references name: a place by its pointer, an anchor, or an `$id` within the same document."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin


@dataclass(frozen=True, slots=True)
class Target:
    schema: Any
    document: Mapping[str, Any]
    """The nearest schema around it with an `$id`, or the whole one: references within the target are about this."""


class References:
    """Those of one document."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._named: dict[str, list[Target]] = {}
        self._bases: dict[int, str] = {}
        """The absolute URI of each document that has one, by its identity."""
        self._is_indexed = False

    def target(self, reference: str, document: Mapping[str, Any]) -> Target | None:
        """What a reference within `document` names; None: nothing that is here, or more than one schema."""
        name, _, fragment = reference.partition("#")
        if name:
            found = self._by_name(name, document)
            if found is None or not fragment:
                return found
            document = found.document
        if not fragment:
            return Target(document, document)
        if fragment.startswith("/"):
            return _at_pointer(document, unquote(fragment))
        return self._by_name(f"#{fragment}", document)

    def _by_name(self, name: str, document: Mapping[str, Any]) -> Target | None:
        if not self._is_indexed:
            self._index()
            self._is_indexed = True
        absolute = _joined(self._bases.get(id(document), ""), name)
        found = self._named.get(absolute) or self._named.get(name) or []
        return found[0] if len(found) == 1 else None

    def _index(self) -> None:
        """All schemas that have an `$id` or an anchor."""
        waiting: list[tuple[Any, Mapping[str, Any], str]] = [(self._root, self._root, "")]
        while waiting:
            value, document, base = waiting.pop()
            if isinstance(value, list):
                waiting += [(inner, document, base) for inner in value]
            if not isinstance(value, Mapping):
                continue
            names = [f"#{value[key]}" for key in ("$anchor", "$dynamicAnchor") if isinstance(value.get(key), str)]
            for key in ("$id", "id"):
                if isinstance(value.get(key), str):
                    names += [value[key], _joined(base, value[key])]
            if _is_document(value):
                document, base = value, _joined(base, value["$id"])
                self._bases[id(document)] = base
            for name in dict.fromkeys(names):
                self._named.setdefault(name, []).append(Target(value, document))
            waiting += [(inner, document, base) for inner in value.values()]


def _at_pointer(document: Mapping[str, Any], pointer: str) -> Target | None:
    """RFC 6901."""
    value: Any = document
    for part in pointer.removeprefix("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch("0|[1-9][0-9]{0,8}", key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
        document = value if _is_document(value) else document
    return Target(value, document) if isinstance(value, Mapping | bool) else None


def _is_document(schema: Any) -> bool:
    own_id = schema.get("$id") if isinstance(schema, Mapping) else None
    return isinstance(own_id, str) and not own_id.startswith("#")


def document_of(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What references within `schema`, itself a part of `document`, are about."""
    return schema if _is_document(schema) else document


def _joined(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:  # it is no reference at all
        return reference
