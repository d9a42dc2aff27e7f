"""What follows from the schema of sampling parameters: checks, records, needs, HTTP fields, the documented tables."""

import math
import re
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest

from engine_core.ipc.row_fields import DEFAULT_ROW, NUM_ROW_FIELDS, ROW_FIELD_INDEX, ROW_INIT_DTYPE, needs_of
from engine_core.ipc.sampling_params import (
    FIELDS,
    FLOAT,
    INT,
    OF_DRAWN_ROWS,
    PENALTIES,
    RANDOM,
    Field,
    SamplingParams,
    passed_on_types,
)
from frontend.protocol.chat import ChatCompletionRequest
from frontend.protocol.common import NamedSamplingFields
from frontend.protocol.structure import StructureFields

DOCS = Path(__file__).parents[2] / "docs"
TYPES = get_type_hints(SamplingParams)
BOUNDED = [name for name, field in FIELDS.items() if field.wanted]
NEEDED = [name for name, field in FIELDS.items() if field.need]
DEFAULTS = {name: getattr(SamplingParams(), name) for name in SamplingParams.__struct_fields__}


def step_of(name: str) -> float:
    """The least that two values differ by, or so."""
    return 1e-6 if TYPES[name] is float else 1


def documented_rows(file: str, title: str) -> dict[str, list[str]]:
    """The cells behind each name in the table below a title."""
    table = (DOCS / file).read_text().split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {name: [cell.strip() for cell in cells] for head, *cells in rows for name in re.findall(r"`(\w+)`", head)}


def bounds_in_words(field: Field, more: str) -> str:
    if field.high in (math.inf, 2**31 - 1):
        return more.format(field.low)
    return f"above {field.low}, to {field.high}" if field.above_low else f"{field.low} to {field.high}"


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds(name: str) -> None:
    """Values at the bounds are taken, those beyond them refused in the schema's words."""
    field, step = FIELDS[name], step_of(name)
    beyond: list[float] = [field.low if field.above_low else field.low - step]
    within: list[float] = [field.low + step if field.above_low else field.low]
    if field.high < math.inf:
        beyond.append(field.high + step)
        within.append(field.high)
    needed: dict[str, dict[str, Any]] = {
        "thinking_token_budget": {"thinking_end_token_ids": [1]},
        "max_tokens": {"prompt_logprobs": 0},
    }
    others = needed.get(name, {})
    for value in within:
        assert getattr(SamplingParams(**{name: value}, **others), name) == value
    for value in [*beyond, math.nan]:
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {field.wanted}, not {value}.")):
            SamplingParams(**{name: value}, **others)


def test_columns_hold_what_the_bounds_allow() -> None:
    for name, field in FIELDS.items():
        assert field.column in ("", INT, FLOAT)
        if field.column == INT and name != "sample_index":  # msgspec checks that one
            assert -(2**31) <= field.low <= field.high < 2**31
        if field.column:
            assert DEFAULT_ROW[name] == DEFAULTS[name]


def test_records_are_rows_of_an_int32_matrix() -> None:
    record = np.full(1, DEFAULT_ROW)
    assert record.view(np.int32).shape == (NUM_ROW_FIELDS,)
    for number, name in enumerate(ROW_INIT_DTYPE.names or ()):
        record[name] = number
        assert record[name].view(np.int32) == record.view(np.int32)[ROW_FIELD_INDEX[name]]


def test_a_request_without_parameters_needs_a_draw_alone() -> None:
    assert needs_of(np.full(1, DEFAULT_ROW)) == [RANDOM]


@pytest.mark.parametrize("name", NEEDED)
def test_needs(name: str) -> None:
    """A row needs what the schema says once the parameter is not the default, and if the row is drawn where that
    counts; what other columns ask for comes beside it."""
    field = FIELDS[name]
    records = np.full(4, DEFAULT_ROW)
    records[name][1:] = field.high if DEFAULTS[name] == field.low else (field.low + field.high) / 2
    records["temperature"][2] = 0.0
    records["penalty_slot"][3] = 0
    greedy = 0 if field.need & OF_DRAWN_ROWS else field.need
    assert needs_of(records).tolist() == [RANDOM, RANDOM | field.need, greedy, RANDOM | field.need | PENALTIES]


def test_http_requests_have_all_that_is_passed_on() -> None:
    types = get_type_hints(ChatCompletionRequest)
    for name, kind in passed_on_types().items():
        assert types[name] == kind | None
        assert getattr(msgspec.convert({"messages": []}, ChatCompletionRequest), name) is None


def test_what_code_reads_by_name_has_the_schemas_types() -> None:
    declared = get_type_hints(NamedSamplingFields)
    for name in declared.keys() - StructureFields.__struct_fields__:
        assert declared[name] == passed_on_types()[name] | None


def test_the_table_of_http_parameters() -> None:
    rows = documented_rows("api.md", "## Parameters of both completions")
    for name in passed_on_types():
        values, default = rows[name]
        value = DEFAULTS[name]
        shown = "false" if value is False else f"{value:g}" if isinstance(value, float | int) else ""
        assert default == ("random" if name == "seed" else shown), name
        if FIELDS[name].wanted and name != "seed":
            assert re.sub(r" \(.*?\)", "", values) == bounds_in_words(FIELDS[name], "{} or more"), name


def test_the_table_of_the_protocol() -> None:
    rows = documented_rows("protocol.md", "### Sampling")
    assert rows.keys() == set(SamplingParams.__struct_fields__)
    for name, (values, default, _) in rows.items():
        value = DEFAULTS[name]
        empty = "nil" if value is None else "empty"
        assert default == (empty if value in (None, [], {}) else msgspec.json.encode(value).decode()), name
        assert ("or nil" in values) == (value is None), name
        if name in BOUNDED and name != "seed":
            words = bounds_in_words(FIELDS[name], ">= {}")
            assert re.sub(r"^int |,? or nil$", "", values) == words, name
