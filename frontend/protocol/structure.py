"""The fields by which a request says what its answer has to be."""

import re
from typing import Any

import msgspec

from frontend.errors import bad_request
from frontend.grammars.structured_outputs import StructuredOutputs
from frontend.protocol.unsupported import UnsupportedFields


class StructureFields(UnsupportedFields, kw_only=True):
    """At most one of them is given; a `response_format` of type `text` says nothing."""

    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    # Names that vLLM had before.
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


_OLD_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


class Structure(msgspec.Struct, frozen=True):
    """What was asked for, and where: `param`, and in it the names of the kinds of structure by their own."""

    asked: StructuredOutputs
    param: str
    own_names: dict[str, str]

    @property
    def field(self) -> str:
        """The request's field that it came from."""
        return self.param or next(iter(self.own_names.values()))

    def place(self, field: str) -> str:
        """The request's name for a place within `asked`."""
        kind = re.split(r"[.\[]", field, maxsplit=1)[0]
        own = self.own_names.get(kind, kind) + field[len(kind) :]
        return ".".join(part for part in (self.param, own) if part)


def structure_of(request: StructureFields) -> Structure | None:
    """Raises a 400 for more than one, and for a `response_format` that there is not."""
    found: list[Structure] = []
    if request.response_format is not None:
        structure = _of_response_format(request.response_format)
        found += [] if structure is None else [structure]
    if request.structured_outputs is not None:
        found.append(Structure(request.structured_outputs, "structured_outputs", {}))
    for name, kind in _OLD_NAMES.items():
        value = getattr(request, name)
        if value is not None:
            found.append(Structure(StructuredOutputs(**{kind: value}), "", {kind: name}))
    if len(found) > 1:
        raise bad_request("Only one field may say what the answer has to be.", found[1].field)
    return found[0] if found else None


def _of_response_format(form: dict[str, Any]) -> Structure | None:
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return Structure(StructuredOutputs(json_object=True), "response_format", {})
        case "json_schema":
            where = "response_format.json_schema"
            inner = form.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict | bool):
                raise bad_request(f"{where} must have a schema.", f"{where}.schema")
            return Structure(StructuredOutputs(json=inner["schema"]), where, {"json": "schema"})
        case "structural_tag":
            return Structure(StructuredOutputs(structural_tag=form), "", {"structural_tag": "response_format"})
    raise bad_request(
        "response_format must be of type 'text', 'json_object', 'json_schema' or 'structural_tag'.",
        "response_format.type",
    )
