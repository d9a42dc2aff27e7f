"""JSON schemas as clients write them."""

from collections.abc import Mapping
from typing import Any

from engine_core.ipc.messages import ERROR_GRAMMAR
from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.client_parts import WrongStructure, json_schema
from frontend.grammars.engine_schema import NotHonoured


def schema_expression(value: Any, where: str, builder: GrammarBuilder, options: Mapping[str, Any]) -> str:
    """What a schema, or its text, validates. Raises `WrongStructure`, or an `ApiError` about what is no schema."""
    try:
        return builder.json(json_schema(value, where), **options)
    except NotHonoured as error:
        raise WrongStructure(f"{where}{error.path}", f"{error}.", ERROR_GRAMMAR) from error
